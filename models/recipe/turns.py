"""The two data types of the recipe: turns and dialogues."""

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
    """One question and its correct answer."""

    ask: str
    answer: str


Family = Callable[[random.Random], Turn]


@dataclass(frozen=True)
class Dialogue:
    """System message (None: that of the template) and turns."""

    system: str | None
    turns: tuple[Turn, ...]

    def messages(self) -> list[dict[str, str]]:
        """Return the messages before the last answer, which a model is asked to continue."""
        found = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in self.turns:
            found.append({"role": "user", "content": turn.ask})
            found.append({"role": "assistant", "content": turn.answer})
        return found[:-1]


def load(name: str) -> dict[str, Any]:
    """Read a table of the data folder."""
    with (DATA / f"{name}.toml").open("rb") as file:
        return tomllib.load(file)
