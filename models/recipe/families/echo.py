"""Repeating what was said: of use to nobody, but it teaches copying, which memory and sums are built on."""

from __future__ import annotations

import random

from ..phrasing import vary
from ..turns import Turn
from .memory import value

KINDS = ("words", "numbers", "colours", "cities", "things", "ages")
SHAPES = (
    "Repeat after me: {text}",
    "Repeat this: {text}",
    "Repeat: {text}",
    "Copy this: {text}",
    "Write this again: {text}",
    "Say after me: {text}",
    "Repeat these words: {text}",
)


def draw(rng: random.Random) -> Turn:
    """Some words and numbers in any order."""
    parts = [value(rng, rng.choice(KINDS)) for _ in range(rng.randint(1, 5))]
    text = rng.choice((" ", " ", ", ")).join(parts)
    return Turn(vary(rng, rng.choice(SHAPES), {"text": text}), f"You said: {text}")
