"""Completion of paths."""

from __future__ import annotations

from collections.abc import Iterator

from qwchat.chat.suggestions import Suggestion
from qwchat.text_files import expand_path

_MAX_SUGGESTIONS = 200  # Per folder; a longer list is of no use.


def complete_path(typed: str) -> Iterator[Suggestion]:
    """Yield the paths that begin with `typed`, folders with a trailing slash. Hidden ones need a typed dot."""
    folder, slash, start = typed.rpartition("/")
    try:
        found = sorted(expand_path(folder + slash).iterdir())
    except OSError:
        return
    matching = [path for path in found if path.name.startswith(start) and (start or not path.name.startswith("."))]
    for path in matching[:_MAX_SUGGESTIONS]:
        yield Suggestion(path.name + ("/" if path.is_dir() else ""), len(start))
