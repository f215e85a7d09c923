"""Repeat the user's words. Copying is useful for memory and sums, which build on it."""

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
    """Draw a list of words and numbers to repeat."""
    parts = [value(rng, rng.choice(KINDS)) for _ in range(rng.randint(1, 5))]
    text = rng.choice((" ", " ", ", ")).join(parts)
    return Turn(vary(rng, rng.choice(SHAPES), {"text": text}), f"You said: {text}")
