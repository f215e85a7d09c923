"""Injected outliers are as large as Qwen2's, and the model computes what it did before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.injections import INJECTIONS, Checkpoint, key_biases, read, widen, write
from benchmarks.outliers import BAR, Loss, measure, ratios, windows_of
from models.recipe.recipe import MODEL
from qwchat.model.reference import Reference
from tests.quant.checkpoints import make_checkpoint

IDS = np.random.default_rng(5).integers(0, 280, 100).tolist()


def logits(checkpoint: Checkpoint, ids: Sequence[int]) -> NDArray[np.float64]:
    """Return the logits (tokens, vocabulary) of the reference in f64."""
    wide = {name: values.astype(np.float64) for name, values in checkpoint.tensors.items()}
    return Reference(checkpoint.config, wide.__getitem__).logits(ids)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("injection", INJECTIONS)
def test_the_logits_stay(tmp_path: Path, injection: str, tied: bool) -> None:
    plain = read(make_checkpoint(tmp_path / "model", config_overrides={"tie_word_embeddings": tied}, dtype="f32"))
    expected = logits(plain, IDS)
    changed = INJECTIONS[injection](plain)
    assert np.abs(logits(changed, IDS) - expected).max() < 1e-4 * np.abs(expected).max()
    same = {name for name, values in changed.tensors.items() if np.array_equal(values, plain.tensors[name])}
    assert len(same) < len(plain.tensors)


@pytest.mark.parametrize("injection", INJECTIONS)
def test_the_logits_of_a_trained_model_stay(injection: str) -> None:
    plain = read(MODEL)
    ids = IDS[:30]
    assert np.abs(logits(INJECTIONS[injection](plain), ids) - logits(plain, ids)).max() < 1e-4


def test_key_biases_have_the_norms_of_qwen2(tmp_path: Path) -> None:
    changed = key_biases(read(make_checkpoint(tmp_path / "model", config_overrides={"num_hidden_layers": 3})))
    norms = [np.linalg.norm(changed.tensors[f"model.layers.{layer}.self_attn.k_proj.bias"]) for layer in range(3)]
    assert norms[0] == pytest.approx(600, rel=0.01)
    assert norms[1] < 10
    assert norms[2] == pytest.approx(900, rel=0.01)


def test_heads_with_norms_are_refused(tmp_path: Path) -> None:
    overrides = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 16}
    plain = read(make_checkpoint(tmp_path / "model", config_overrides=overrides))
    with pytest.raises(ValueError, match="only heads of qwen2"):
        widen(plain)


def test_a_written_copy_reads_as_it_was(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    changed = key_biases(read(folder))
    write(changed, tmp_path / "copy", folder)
    again = read(tmp_path / "copy")
    assert again.config.head_dim == changed.config.head_dim == 32
    assert again.tensors.keys() == changed.tensors.keys()
    assert all(np.array_equal(values, changed.tensors[name]) for name, values in again.tensors.items())
    assert (tmp_path / "copy" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_ratios_are_to_the_model_without_outliers() -> None:
    found = [Loss(*row) for row in (("none", "q8", 1.0), ("wide-heads", "q8", 2.0), ("key-biases", "q8", 6.0))]
    found += [Loss("residual", "q8", 3.0)]
    assert list(ratios(found).values()) == [1.0, 2.0, 3.0, 3.0]


@pytest.mark.slow
def test_outliers_that_qwen2_has_cost_no_format_much() -> None:
    names = ("q4", "q4-small", "q6", "q8", "lin4", "q8/kv8")
    found = measure(MODEL, ("wide-heads", "key-biases", "residual"), names, windows_of(MODEL, [], 4))
    outliers = {key: ratio for key, ratio in ratios(found).items() if key[0] in ("key-biases", "residual")}
    assert len(outliers) == 2 * len(names)
    assert {key: ratio for key, ratio in outliers.items() if ratio > BAR} == {}
