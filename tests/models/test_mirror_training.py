"""The training of the mirror continues where it stopped, and its models open as Hugging Face folders."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from models.recipe.export import export  # noqa: E402
from models.recipe.mirror import pretrain  # noqa: E402
from models.recipe.mirror.plan import ModelPlan, Plan  # noqa: E402
from models.recipe.network import Mini  # noqa: E402
from models.recipe.optimiser import Optimiser  # noqa: E402
from models.recipe.recipe import MODEL  # noqa: E402
from quant.sources import open_source  # noqa: E402
from quant.sources.tensor_checks import check_tensors  # noqa: E402

STREAMS = {
    kind: np.random.default_rng(0).integers(4096, size=4000).astype(np.uint16) for kind in ("source", "licences")
}


def small(name: str, steps: int) -> ModelPlan:
    plan = Plan.load().models[name]
    shape = replace(plan.shape, vocab_size=4096, hidden_size=128, intermediate_size=96, layers=2, heads=2, kv_heads=1)
    shares = {"source": 0.5, "licences": 0.5}
    return replace(plan, shape=shape, shares=shares, length=32, sequences=5, steps=steps, rates=((0, 0.5), (4, 1.0)))


def trained(name: str, folder: Path, *stops: int) -> Path:
    options = argparse.Namespace(device="cpu", compile=False, every=100)
    for steps in stops:
        pretrain.run(small(name, steps), STREAMS, folder / "model.pt", options)
    return folder / "model.pt"


@pytest.mark.parametrize("name", ["mirror", "sliver"])
def test_a_stopped_run_sees_the_same_tokens(tmp_path: Path, name: str) -> None:
    (tmp_path / "again").mkdir()
    once, again = trained(name, tmp_path, 4), trained(name, tmp_path / "again", 2, 4)
    first, second = (torch.load(path, weights_only=True) for path in (once, again))
    assert (first["step"], first["tokens"]) == (second["step"], second["tokens"]) == (4, 4 * 5 * 32)
    assert all(torch.equal(weight, second["model"][key]) for key, weight in first["model"].items())


@pytest.mark.parametrize(("name", "head", "family"), [("mirror", True, "qwen2"), ("sliver", False, "qwen3")])
def test_the_published_folder_has_the_tensors_of_its_family(tmp_path: Path, name: str, head: bool, family: str) -> None:
    checkpoint = trained(name, tmp_path, 1)
    export(checkpoint, tmp_path / "model", shape=small(name, 1).shape, tokenizer=MODEL)
    with open_source(tmp_path / "model") as source:
        assert check_tensors(source) == []
        assert ("lm_head.weight" in source.tensors) == head
        assert source.config.model_type == family
        assert source.config.head_dim == 64
    assert json.loads((tmp_path / "model" / "config.json").read_text())["tie_word_embeddings"] is not head


def test_the_head_and_the_embedding_are_not_orthogonalised() -> None:
    model = Mini(small("mirror", 1).shape)
    matrices = {id(weight) for weight in Optimiser(model, 0.02, 0.003).matrices}
    names = {name for name, weight in model.named_parameters() if id(weight) in matrices}
    assert len(names) == 2 * 7
    assert all(name.startswith("model.layers.") for name in names)


def test_the_mirror_has_25_to_40_million_weights() -> None:
    with torch.device("meta"):
        count = sum(weight.numel() for weight in Mini(Plan.load().models["mirror"].shape).parameters())
    assert 25_000_000 <= count <= 40_000_000


def test_a_step_mixes_the_kinds_by_their_shares() -> None:
    plan = replace(small("mirror", 1), sequences=400, shares={"source": 0.9, "licences": 0.1})
    streams = {"source": np.zeros(100, np.uint16), "licences": np.ones(100, np.uint16)}
    ids = pretrain.batch(plan, streams, 3)
    assert ids.shape == (400, 32)
    assert 20 <= int(ids[:, 0].sum()) <= 60
    assert torch.equal(ids, pretrain.batch(plan, streams, 3))
    assert not torch.equal(ids, pretrain.batch(plan, streams, 4))
