"""Questions outside the small world, and the honest answer to them."""

from __future__ import annotations

import random
import re
from functools import cache
from typing import Any

from ..phrasing import expand, vary
from ..turns import Turn, load

SLOT = re.compile(r"\{(\w+)\}")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@cache
def table() -> dict[str, Any]:
    """The shapes, the lists for their slots and the answer."""
    return load("scope")


def gibberish(rng: random.Random) -> str:
    """A run of random letters, as from a cat on the keyboard."""
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(6, 14)))


def slot(rng: random.Random, name: str) -> str:
    """One value of a slot."""
    if name == "big":
        return str(rng.randint(100, 9999))
    if name == "gibberish":
        return gibberish(rng)
    return rng.choice(table()[name])


def draw(rng: random.Random) -> Turn:
    """One question that the model must not pretend to answer."""
    shape = expand(rng, rng.choice(table()["asks"]))
    text = SLOT.sub(lambda match: slot(rng, match.group(1)), shape)
    return Turn(vary(rng, text), table()["answer"].strip())
