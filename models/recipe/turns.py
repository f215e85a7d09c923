"""The two small shapes that everything here passes around."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Turn:
    """One question and the one right answer to it."""

    ask: str
    answer: str


Family = Callable[[random.Random], Turn]


@dataclass(frozen=True)
class Dialogue:
    """A system message (None: the template's own) and the turns under it."""

    system: str | None
    turns: tuple[Turn, ...]

    def messages(self) -> list[dict[str, str]]:
        """The messages before the last answer: what a model is asked to continue."""
        found = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in self.turns:
            found.append({"role": "user", "content": turn.ask})
            found.append({"role": "assistant", "content": turn.answer})
        return found[:-1]


def load(name: str) -> dict[str, Any]:
    """Read one of the tables of the data folder."""
    with (DATA / f"{name}.toml").open("rb") as file:
        return tomllib.load(file)
