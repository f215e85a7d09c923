"""Completion suggestions, made by commands and mentions, shown by the editor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Suggestion:
    """Insert `text` in place of the `replaced` characters before the cursor. `note` is shown beside it."""

    text: str
    replaced: int
    note: str = ""


def match_suggestions(typed: str, choices: Iterable[tuple[str, str]]) -> list[Suggestion]:
    """Return the choices (text, note) that match `typed`: its characters occur in the text in this order.

    Texts that begin with `typed` come first, then those that contain it, otherwise in the given order.
    """
    wanted = typed.casefold()
    ranked = []
    for text, note in choices:
        rank = _rank(wanted, text.casefold())
        if rank is not None:
            ranked.append((rank, Suggestion(text, len(typed), note)))
    return [suggestion for _, suggestion in sorted(ranked, key=lambda pair: pair[0])]


def _rank(wanted: str, text: str) -> int | None:
    if text.startswith(wanted):
        return 0
    if wanted in text:
        return 1
    characters = iter(text)
    return 2 if all(character in characters for character in wanted) else None
