"""Numbers of `recipe.toml`, and the dialogues that they describe."""

from __future__ import annotations

import itertools
import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .dialogues import Measure, dialogue
from .turns import Dialogue

RECIPE = Path(__file__).parent / "recipe.toml"
MODEL = Path(__file__).parent.parent / "mini"


@dataclass(frozen=True)
class Phase:
    """Tokens per step and mixture of families, from one step on."""

    from_step: int
    tokens: int
    longest: int
    turns: tuple[float, ...]
    mixture: dict[str, float]


@dataclass(frozen=True)
class TokenizerPlan:
    """Training data of the tokenizer, and its number of tokens."""

    dialogues: int
    size: int


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the trained weights."""

    seed: int
    steps: int
    rates: tuple[tuple[int, float], ...]
    matrix_rate: float
    vector_rate: float
    compared: int
    quantised_from: int
    tokenizer: TokenizerPlan
    phases: tuple[Phase, ...]

    @classmethod
    def load(cls, path: Path = RECIPE) -> Recipe:
        """Read a recipe file."""
        with path.open("rb") as file:
            table = tomllib.load(file)
        phases = tuple(Phase(**phase) for phase in table.pop("phase"))
        return cls(tokenizer=TokenizerPlan(**table.pop("tokenizer")), phases=phases, **table)

    def phase(self, step: int) -> Phase:
        """Return the phase of a step."""
        return [phase for phase in self.phases if phase.from_step <= step][-1]

    def rate(self, step: int) -> float:
        """Return the factor on both learning rates, linear between the steps that the recipe names."""
        for (start, low), (end, high) in itertools.pairwise(self.rates):
            if start <= step < end:
                return low + (high - low) * (step - start) / (end - start)
        return self.rates[-1][1]

    def quantises(self, step: int) -> bool:
        """Return True if the step trains with some matrices rounded."""
        return step >= self.quantised_from

    def draw(self, step: int, measure: Measure) -> Iterator[Dialogue]:
        """Yield dialogues of a step, without end."""
        rng = random.Random(f"{self.seed}:{step}")
        phase = self.phase(step)
        while True:
            yield dialogue(rng, phase.mixture, phase.turns, phase.longest, measure)
