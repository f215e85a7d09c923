"""Facts that people tell early in a conversation and ask for later.

Unlike the other families, this one spans several turns: a `Memory` makes turns that tell a fact and turns that ask for
it, and keeps the correct answers. Some names are made up of syllables, so that the model learns to copy what it was
told, not just to choose from a list.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from ..phrasing import vary
from ..turns import Turn, load
from .words import words

ENDINGS = ("", "", "n", "s", "r", "l", "x")
PLACES = ("first", "second", "third", "last")


@cache
def table() -> dict[str, Any]:
    """Return the slots, the list, and the values."""
    return load("memory")


@cache
def slots() -> dict[str, dict[str, Any]]:
    """Return the slots by name."""
    return {slot["name"]: slot for slot in table()["slot"]}


@cache
def values(name: str) -> tuple[str, ...]:
    """Return one list of values."""
    return words() if name == "words" else tuple(table()["values"][name].split())


def invented(rng: random.Random) -> str:
    """Return a made-up name."""
    parts = [rng.choice(values("syllables")) for _ in range(2)]
    return ("".join(parts) + rng.choice(ENDINGS)).capitalize()


def value(rng: random.Random, kind: str) -> str:
    """Draw a value of a kind."""
    if kind == "names":
        name = invented(rng) if rng.random() < 0.15 else rng.choice(values(kind))
        return name.lower() if rng.random() < 0.12 else name
    if kind == "numbers":
        return str(rng.randint(1, 10 ** rng.randint(1, 4) - 1))
    if kind == "ages":
        return str(rng.randint(5, 99))
    return rng.choice(values(kind))


class Memory:
    """Facts that were told in one conversation."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.known: dict[str, str] = {}
        self.things: list[str] = []

    def tell(self, name: str) -> Turn:
        """Return a turn that tells a slot for the first time or changes its value."""
        rng = self.rng
        if name == "list":
            self.things = rng.sample(sorted(set(values("things"))), rng.randint(2, 5))
            told = {"v": ", ".join(self.things)}
            spec = table()["list"]
        else:
            spec = slots()[name]
            self.known[name] = value(rng, spec["values"])
            told = {"v": self.known[name]}
        return Turn(vary(rng, rng.choice(spec["tell"]), told), spec["ack"].replace("{v}", told["v"]))

    def ask(self, name: str) -> Turn:
        """Return a turn that asks for a slot, told or not."""
        if name == "list":
            return self.ask_list()
        spec = slots()[name]
        told = self.known.get(name)
        answer = spec["unknown"] if told is None else spec["recall"].replace("{v}", told)
        return Turn(vary(self.rng, self.rng.choice(spec["ask"])), answer)

    def ask_list(self) -> Turn:
        """Return a turn that asks for the list, its length or one of its items."""
        rng, spec, kind = self.rng, table()["list"], self.rng.random()
        if kind < 0.6 or not self.things:
            answer = spec["recall"].replace("{v}", ", ".join(self.things)) if self.things else spec["unknown"]
            return Turn(vary(rng, rng.choice(spec["ask"])), answer)
        if kind < 0.75:
            return Turn(vary(rng, rng.choice(spec["count_ask"])), spec["count"].replace("{n}", str(len(self.things))))
        place = rng.choice([p for p in PLACES if p == "last" or PLACES.index(p) < len(self.things)])
        thing = self.things[-1] if place == "last" else self.things[PLACES.index(place)]
        answer = spec["place"].replace("{p}", place).replace("{v}", thing)
        return Turn(vary(rng, rng.choice(spec["place_ask"]), {"p": place}), answer)


def topics() -> list[str]:
    """Return the names of everything that can be told."""
    return [*slots(), "list"]
