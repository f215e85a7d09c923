"""The embedded model keeps its knowledge when quantised: a sample of `python -m models.recipe.evaluate`."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.recipe.backends import Engine
from models.recipe.chatml import ChatML
from models.recipe.dialogues import FAMILIES, MEMORY
from models.recipe.evaluate import evaluate
from models.recipe.recipe import MODEL
from quant import convert

COUNT = 20
SEED = 3  # used neither in training nor for the figures of the model card


@pytest.mark.slow
def test_held_out_prompts_are_answered_exactly(tmp_path: Path) -> None:
    list(convert(MODEL, tmp_path / "q4", preset="q4"))
    engine = Engine(tmp_path / "q4")
    shares = evaluate(engine, ChatML.load(MODEL), [*FAMILIES, MEMORY], COUNT, SEED)
    engine.model.close()
    assert min(shares.values()) >= 0.8
    assert sum(shares.values()) / len(shares) >= 0.95


@pytest.mark.slow
def test_generated_answers_agree_with_scored_ones(tmp_path: Path) -> None:
    list(convert(MODEL, tmp_path / "dense", preset="dense"))
    engine = Engine(tmp_path / "dense")
    families = ["about", "quantisation", "words"]
    scored = evaluate(engine, ChatML.load(MODEL), families, COUNT, SEED)
    generated = evaluate(engine, ChatML.load(MODEL), families, COUNT, SEED, generate=True)
    engine.model.close()
    assert scored == generated
