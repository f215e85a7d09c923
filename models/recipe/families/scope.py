"""Questions that the model cannot answer, and an honest reply to them."""

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
    """Return the shapes, the lists for their slots and the answer."""
    return load("scope")


def gibberish(rng: random.Random) -> str:
    """Return a run of random letters."""
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(6, 14)))


def slot(rng: random.Random, name: str) -> str:
    """Draw a value of a slot."""
    if name == "big":
        return str(rng.randint(100, 9999))
    if name == "gibberish":
        return gibberish(rng)
    return rng.choice(table()[name])


def draw(rng: random.Random) -> Turn:
    """Draw one question that the model must not pretend to answer."""
    shape = expand(rng, rng.choice(table()["asks"]))
    text = SLOT.sub(lambda match: slot(rng, match.group(1)), shape)
    return Turn(vary(rng, text), table()["answer"].strip())
