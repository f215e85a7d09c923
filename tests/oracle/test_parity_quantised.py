"""Quantised models, compared with transformers on the very weights that our tensors stand for.

Only the engine's own error is left: activations quantised in groups of 32, and the order of sums.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.container import open_model
from quant.formats import dequantise
from quant.native.simd_level import supported_levels
from tests.conftest import REPOSITORY
from tests.oracle.engine import converted, feed, loaded, one_pass, token_by_token
from tests.oracle.reference import distance, load_reference, logits_of, torch
from tests.quant.checkpoints import make_checkpoint, write_json, write_weights

MINI = REPOSITORY / "models" / "mini"
DIALOGUES, SEED, LONGEST = 24, 8, 400
MOST_DIVERGENCE = 1e-3
LEAST_AGREEMENT = 0.98
CLEAR_LEAD = 0.1
"""Of the best logit over the second, where logits have a standard deviation of 1."""
LEVELS_AGREE = 1e-5
"""Between SIMD levels, and between decoding and prefill, relative to the largest logit."""

SETTINGS: dict[str, dict[str, Any]] = {
    "q4": {"preset": "q4"},
    "q8": {"preset": "q8"},
    "lin4": {"bits": 4, "group_size": 128},
}

ON_ONE_LEVEL = """
import sys
import numpy as np
from tests.oracle.engine import feed, loaded, one_pass, token_by_token
folder, ids, out = sys.argv[1:]
ids = np.load(ids).tolist()
with loaded(folder, len(ids)) as engine:
    prefill = feed(engine, ids, one_pass(len(ids)))
    decode = feed(engine, ids[:40], token_by_token(40))
np.savez(out, prefill=prefill, decode=decode)
"""


@cache
def texts() -> tuple[tuple[int, ...], ...]:
    """Held-out dialogues of the embedded model, as token ids."""
    figures = pytest.importorskip("models.recipe.figures", reason="the recipe of the embedded model is not here")
    chat = figures.ChatML.load(MINI)
    return tuple(tuple(ids[:LONGEST]) for ids, _ in figures.sample(chat, DIALOGUES, SEED))


@pytest.fixture(scope="module")
def mini() -> Path:
    if not (MINI / "model.safetensors").is_file():
        pytest.skip("models/mini, the embedded model, has no weights in this checkout")
    return MINI


@pytest.fixture(scope="module", params=SETTINGS)
def quantised(request: pytest.FixtureRequest, mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the embedded model in one format."""
    return converted(mini, tmp_path_factory.mktemp(request.param) / "model", **SETTINGS[request.param])


def dequantised(folder: Path, destination: Path) -> Path:
    """Return a float32 checkpoint of the values that the packed tensors stand for."""
    destination.mkdir()
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(destination / "config.json", {**values, "torch_dtype": "float32"})
    model = open_model(folder)
    write_weights(destination, {name: dequantise(model.tensor(name)) for name in model.names}, dtype="f32")
    return destination


def divergence(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return the Kullback-Leibler divergence of each position from the reference, (tokens,) in nats."""
    wanted, found = (torch.log_softmax(torch.from_numpy(x.astype(np.float64)), -1) for x in (reference, logits))
    result: np.ndarray = (wanted.exp() * (wanted - found)).sum(-1).numpy()
    return result


def test_distributions_are_those_of_the_dequantised_weights(quantised: Path, tmp_path: Path) -> None:
    reference = load_reference(dequantised(quantised, tmp_path / "dequantised"), torch.float32)
    divergences, agreements = [], []
    with loaded(quantised, LONGEST) as engine:
        for number, sequence in enumerate(texts()):
            ids = list(sequence)
            order = token_by_token(len(ids)) if number == 0 else one_pass(len(ids))
            logits, wanted = feed(engine, ids, order), logits_of(reference, ids)
            divergences.append(divergence(wanted, logits))
            agreements.append(wanted.argmax(-1) == logits.argmax(-1))
    assert np.concatenate(divergences).mean() <= MOST_DIVERGENCE
    assert np.concatenate(agreements).mean() >= LEAST_AGREEMENT


FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"hidden_size": 896, "num_attention_heads": 7, "num_key_value_heads": 1},
    "qwen3": {"model_type": "qwen3", "hidden_size": 640, "num_attention_heads": 8, "head_dim": 128},
}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_random_models(settings: dict[str, Any], family: dict[str, Any], tmp_path: Path) -> None:
    """Compare wide heads, an untied head and a padded vocabulary, which the embedded model does not have."""
    overrides = {"intermediate_size": 1024, **family}
    source = make_checkpoint(tmp_path / "source", seed=5, config_overrides={**overrides, "vocab_size": 1000})
    folder = converted(source, tmp_path / "model", **settings)
    ids = [int(token) for token in np.random.default_rng(5).integers(1000, size=200)]
    wanted = logits_of(load_reference(dequantised(folder, tmp_path / "dequantised"), torch.float32), ids)
    with loaded(folder, len(ids)) as engine:
        logits = feed(engine, ids, one_pass(len(ids)))
        decoded = feed(engine, ids[:40], token_by_token(40))
    assert divergence(wanted, logits).mean() <= MOST_DIVERGENCE
    # A random model is often undecided between two tokens; where it is not, both choose the same one.
    second, first = np.sort(wanted, axis=-1)[:, -2:].T
    assert (wanted.argmax(-1) == logits.argmax(-1))[first - second > CLEAR_LEAD].all()
    assert distance(decoded, logits[:40]) <= LEVELS_AGREE


@pytest.mark.parametrize(
    ("settings", "family"),
    [*((settings, {}) for settings in (*SETTINGS.values(), {"preset": "dense"})), (SETTINGS["q4"], FAMILIES["qwen3"])],
    ids=[*SETTINGS, "dense", "qwen3 q4"],
)
def test_simd_levels_agree(settings: dict[str, Any], family: dict[str, Any], tmp_path: Path) -> None:
    overrides = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4, "vocab_size": 1000, **family}
    source = make_checkpoint(tmp_path / "source", seed=6, config_overrides=overrides)
    folder = converted(source, tmp_path / "model", **settings)
    np.save(tmp_path / "ids.npy", np.random.default_rng(6).integers(1000, size=150))
    results = {}
    for level in supported_levels():
        out = tmp_path / f"{level}.npz"
        subprocess.run(
            [sys.executable, "-c", ON_ONE_LEVEL, str(folder), str(tmp_path / "ids.npy"), str(out)],
            cwd=REPOSITORY,
            env={**os.environ, "QWCHAT_SIMD": level},
            check=True,
        )
        results[level] = np.load(out)
    for level, found in results.items():
        for name in ("prefill", "decode"):
            assert distance(found[name], results["portable"][name]) <= LEVELS_AGREE, (level, name)
