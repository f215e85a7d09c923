"""A new model family needs one file and one registration."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant import formats
from quant.container import open_model
from quant.errors import CheckpointError
from quant.families import FAMILIES, expected_tensors, parameter_count, parse_config
from quant.policy import ConversionSpec, plan_tensors
from quant.sources import check_tensors
from tests.quant.converting import run
from tests.quant.families.made_up_family import CONFIG, MADE_UP
from tests.quant.sources.memory import MemorySource


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, MADE_UP.model_type, MADE_UP)


def test_config_is_read_by_the_keys_of_the_family() -> None:
    config = parse_config(CONFIG)
    assert (config.model_type, config.hidden_size, config.intermediate_size) == ("made-up", 64, 96)
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (9, 4, 2, 16)
    assert (config.vocab_size, config.max_position_embeddings, config.rms_norm_eps) == (320, 256, 1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"parallel": True}, "config.json: parallel is true; parallel layers are not supported"),
        ({"n_heads": 5}, "config.json: d_model 64 is not a multiple of n_heads 5"),
        ({"n_groups": 3}, "config.json: n_heads 4 is not a multiple of n_groups 3"),
        ({"d_model": None}, r"config.json: the key 'd_model' \(integer\) is missing"),
        ({"norm_epsilon": 0}, "config.json: norm_epsilon is 0, expected a number"),
        ({"quantization_config": {}}, "config.json: the checkpoint is already quantised"),
        ({"model_type": "other"}, "config.json: model_type is 'other'; only 'qwen2', 'qwen3' and 'made-up'"),
    ],
)
def test_refusals_name_the_keys_of_the_family(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{message}"):
        parse_config({**CONFIG, **overrides})


def test_tensors_are_those_of_the_family() -> None:
    config = parse_config(CONFIG)
    expected = expected_tensors(config)
    assert [name for name in expected if name.endswith("bias")] == []
    assert expected["blocks.8.q_norm.weight"] == (16,)
    assert len(expected) == 2 + 9 * 6
    assert parameter_count(config) == sum(math.prod(shape) for shape in expected.values())
    assert "logits.weight" not in expected_tensors(parse_config({**CONFIG, "tie_word_embeddings": True}))


def formats_of(preset: str, **overrides: object) -> dict[str, str]:
    config = parse_config({**CONFIG, **overrides})
    names = expected_tensors(config)
    plans = plan_tensors(config, ConversionSpec(preset, 32), dict.fromkeys(names, "bf16"), dict.fromkeys(names, 0))
    return {tensor.name: tensor.format for tensor in plans}


def test_the_policy_knows_the_sensitive_matrices_and_the_head_of_the_family() -> None:
    chosen = formats_of("q4")
    assert [layer for layer in range(9) if chosen[f"blocks.{layer}.fold.weight"] == "q6"] == [0]
    assert {chosen[f"blocks.{layer}.v.weight"] for layer in range(9)} == {"q4"}
    assert (chosen["tokens.weight"], chosen["logits.weight"]) == ("q6", "q6")
    assert chosen["blocks.0.q_norm.weight"] == "vector"
    assert formats_of("q4-small", tie_word_embeddings=True)["tokens.weight"] == "q6"
    assert formats_of("q4-small")["blocks.0.fold.weight"] == "q4"


def contents() -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    shapes = expected_tensors(parse_config(CONFIG)).items()
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes}


def test_a_model_of_the_family_is_converted_and_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = MemorySource(CONFIG, contents())
    monkeypatch.setattr("quant.conversion.open_source", lambda path: source)
    run(source.path, tmp_path / "model", preset="dense")
    model = open_model(tmp_path / "model")
    assert model.config == source.config
    assert model.names == tuple(source.tensors)
    for name in model.names:
        assert np.array_equal(formats.dequantise(model.tensor(name)), source.read(name))


def test_tensors_are_checked_by_what_the_family_says() -> None:
    tensors = contents() | {"blocks.0.angles": np.ones(8, np.float32)}
    assert check_tensors(MemorySource(CONFIG, tensors)) == [
        "blocks.0.angles is ignored: rotary frequencies are derived from config.json"
    ]
    assert check_tensors(MemorySource({**CONFIG, "tie_word_embeddings": True}, contents())) == [
        "logits.weight is ignored: tie_word_embeddings is true, so the embedding is the head"
    ]
    with pytest.raises(CheckpointError, match="n_layers is 8, but the tensors have 9 layers"):
        check_tensors(MemorySource({**CONFIG, "n_layers": 8}, tensors))
    with pytest.raises(CheckpointError, match=r"q\.weight has shape \[64, 64\], but d_model 32 would need"):
        check_tensors(
            MemorySource({**CONFIG, "d_model": 32, "vocab": 320}, {**tensors, "tokens.weight": np.ones((320, 32))})
        )
    with pytest.raises(CheckpointError, match=r"contains tensor blocks\.0\.q\.bias, which a Made-up model"):
        check_tensors(MemorySource(CONFIG, {**tensors, "blocks.0.q.bias": np.ones(64, np.float32)}))
    del tensors["blocks.3.mix.weight"]
    with pytest.raises(
        CheckpointError, match=r"requires tensor blocks\.3\.mix\.weight, which the checkpoint does not have"
    ):
        check_tensors(MemorySource(CONFIG, tensors))
