"""Numbers of `mirror.toml`: the texts, the tokenizer, and the models that are trained on them."""

from __future__ import annotations

import itertools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..shape import Shape

PLAN = Path(__file__).parent / "mirror.toml"


@dataclass(frozen=True)
class TextPlan:
    """Packages to read, and how much of them."""

    packages: tuple[str, ...]
    held_out: dict[str, int]  # by kind, one file in so many
    most_of_package: int  # characters, apart from licences
    longest: int  # characters of one document


@dataclass(frozen=True)
class ModelPlan:
    """One model: its shape, what it reads, and for how long."""

    shape: Shape
    seed: int
    shares: dict[str, float]  # of the tokens, by kind of text
    length: int  # tokens of a sequence
    sequences: int  # of a step
    steps: int
    rates: tuple[tuple[int, float], ...]
    matrix_rate: float
    vector_rate: float

    def rate(self, step: int) -> float:
        """Return the factor on both learning rates, linear between the steps that the plan names."""
        for (start, low), (end, high) in itertools.pairwise(self.rates):
            if start <= step < end:
                return low + (high - low) * (step - start) / (end - start)
        return self.rates[-1][1]


@dataclass(frozen=True)
class Plan:
    """Everything that determines the texts and the weights of the models."""

    texts: TextPlan
    tokenizer_size: int
    tokenizer_characters: int
    models: dict[str, ModelPlan]

    @classmethod
    def load(cls, path: Path = PLAN) -> Plan:
        """Read a plan."""
        with path.open("rb") as file:
            table = tomllib.load(file)
        texts = TextPlan(**{**table["texts"], "packages": tuple(table["texts"]["packages"])})
        models = {name: model_plan(entry) for name, entry in table["model"].items()}
        return cls(texts, table["tokenizer"]["size"], table["tokenizer"]["characters"], models)


def model_plan(entry: dict[str, Any]) -> ModelPlan:
    """Return the plan of one model."""
    shape = Shape(**entry.pop("shape"))
    return ModelPlan(shape=shape, rates=tuple(tuple(pair) for pair in entry.pop("rates")), **entry)
