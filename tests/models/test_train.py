"""A training run starts at its checkpoint, at an exported model, or with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from models.recipe.export import export  # noqa: E402
from models.recipe.network import Mini  # noqa: E402
from models.recipe.optimiser import Optimiser  # noqa: E402
from models.recipe.recipe import MODEL, Recipe  # noqa: E402
from models.recipe.shape import Shape  # noqa: E402
from models.recipe.train import begin, save  # noqa: E402


def fresh() -> tuple[Mini, Optimiser]:
    recipe = Recipe.load()
    model = Mini(Shape())
    return model, Optimiser(model, recipe.matrix_rate, recipe.vector_rate)


def test_a_run_begins_at_the_exported_model(tmp_path: Path) -> None:
    model, optimiser = fresh()
    assert begin(tmp_path / "checkpoint.pt", MODEL, 5220, model, optimiser) == (5220, 0)
    save(tmp_path / "checkpoint.pt", model, optimiser, 5221, 100)
    assert export(tmp_path / "checkpoint.pt", tmp_path / "again") == 100
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (MODEL / "model.safetensors").read_bytes()
    other, optimiser = fresh()
    assert begin(tmp_path / "checkpoint.pt", tmp_path / "missing", 7, other, optimiser) == (5221, 100)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


def test_an_export_takes_the_mean_of_two_checkpoints(tmp_path: Path) -> None:
    model, optimiser = fresh()
    for name, value in (("earlier", 1.0), ("later", 2.0)):
        for weight in model.parameters():
            weight.data.fill_(value)
        save(tmp_path / f"{name}.pt", model, optimiser, 7, 100)
    assert export(tmp_path / "later.pt", tmp_path / "mean", tmp_path / "earlier.pt") == 100
    begin(tmp_path / "missing.pt", tmp_path / "mean", 7, model, optimiser)
    assert all(bool((weight == 1.5).all()) for weight in model.parameters())


def test_a_run_begins_at_random_weights(tmp_path: Path) -> None:
    assert begin(tmp_path / "checkpoint.pt", None, 7, *fresh()) == (0, 0)


def test_rates_warm_up_from_every_start() -> None:
    recipe = Recipe.load()
    assert [recipe.rate(start) <= 0.02 for start in (0, 5221)] == [True, True]
    assert recipe.rate(recipe.steps) == 0
    assert recipe.phases[-1].from_step < recipe.steps
