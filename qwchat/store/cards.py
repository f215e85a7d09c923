"""GPUs for estimates: common NVIDIA cards from a table, or the one of this machine."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from qwchat.errors import UsageError

_FILE = Path(__file__).with_name("cards.toml")
_USABLE = 0.98
"""Share of the memory of nvidia-smi that programs can use, about; the driver reserves the rest."""
_IGNORED = re.compile(r"nvidia|geforce|tesla|[^a-z0-9]")


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        name: what it is called, without the vendor.
        memory: bytes that programs can use.
        bandwidth: bytes per second that its memory transfers at most; None if unknown.
    """

    name: str
    memory: int
    bandwidth: float | None


@cache
def common_cards() -> tuple[Card, ...]:
    """Return the table of common cards, from the smallest memory to the largest."""
    table = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    cards = [
        Card(card["name"], int(_USABLE * (card["memory"] << 20)), card["bandwidth"] * 1e9) for card in table["cards"]
    ]
    return tuple(sorted(cards, key=lambda card: (card.memory, card.bandwidth)))


def find_card(text: str) -> Card:
    """Return the card that `text` names, such as "NVIDIA GeForce RTX 4090" or "4090".

    Raises UsageError if no card or several cards have such a name.
    """
    wanted = _key(text)
    keys = {_key(card.name): card for card in common_cards()}
    if wanted in keys:
        return keys[wanted]
    ending = [card for key, card in keys.items() if wanted and key.endswith(wanted)]
    matching = ending or [card for key, card in keys.items() if wanted and wanted in key]
    if len(matching) == 1:
        return matching[0]
    names = [card.name for card in common_cards()]
    named = [card.name for card in matching] or difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(named[:4])}?" if named else f"choose from {', '.join(names)}"
    raise UsageError(f"{text[:60]!r} is not in the table of cards: {hint}")


def _key(text: str) -> str:
    return _IGNORED.sub("", text.lower())
