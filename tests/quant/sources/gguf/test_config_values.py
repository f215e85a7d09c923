"""Metadata as config.json: published models, YaRN, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quant.errors import CheckpointError
from quant.families import parse_config
from quant.model_config import YarnScaling
from quant.sources.gguf.config_values import config_values
from quant.sources.gguf.reader import GgufFile
from tests.quant.sources.gguf.files import Typed, gguf_file
from tests.quant.sources.gguf.models import model_metadata

PUBLISHED = (
    *("qwen2-0.5b-instruct", "qwen2-1.5b-instruct", "qwen2-7b-instruct", "qwen2-72b-instruct"),
    *("qwen2.5-3b-instruct", "qwen2.5-14b-instruct", "qwen2.5-32b-instruct"),
)
SMALL: dict[str, Any] = {
    "general.architecture": "qwen2",
    "qwen2.block_count": 2,
    "qwen2.context_length": 256,
    "qwen2.embedding_length": 64,
    "qwen2.feed_forward_length": 96,
    "qwen2.attention.head_count": 4,
    "qwen2.attention.head_count_kv": 2,
    "qwen2.attention.layer_norm_rms_epsilon": 1e-6,
}


def metadata_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata that llama.cpp's converter writes for a published config.json."""
    tokenizer = {f"tokenizer.ggml.{name}_token_id": config[f"{name}_token_id"] for name in ("bos", "eos")}
    return model_metadata(config) | tokenizer


def values_of(folder: Path, metadata: Mapping[str, Any], vocab_size: int = 320, tied: bool = False) -> dict[str, Any]:
    file = folder / "model.gguf"
    file.write_bytes(gguf_file(metadata))
    return config_values(GgufFile.open(file).metadata, vocab_size, tied, "FILE")


def refusal(folder: Path, changes: Mapping[str, Any]) -> str:
    metadata = {key: value for key, value in {**SMALL, **changes}.items() if value is not ...}
    with pytest.raises(CheckpointError) as caught:
        parse_config(values_of(folder, metadata), "FILE")
    return str(caught.value)


def test_config_of_the_published_model(tmp_path: Path, shared_qwen2: Path) -> None:
    published = json.loads((shared_qwen2 / "7b-instruct" / "config.json").read_text())
    values = values_of(tmp_path, metadata_of(published), published["vocab_size"])
    derived = {"head_dim": 128}
    assert {key: value for key, value in values.items() if key not in derived} == {
        key: published[key] for key in values if key not in derived
    }
    expected = parse_config(published)
    assert parse_config(values) == replace(expected, torch_dtype=None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_of_all_sizes(tmp_path: Path, shared_qwen2: Path, name: str) -> None:
    published = json.loads((shared_qwen2 / "shapes.json").read_text())[name]
    tied = published["tie_word_embeddings"]
    values = values_of(tmp_path, metadata_of(published), published["vocab_size"], tied)
    assert parse_config(values) == replace(parse_config(published), torch_dtype=None)


def test_qwen3_has_heads_of_their_own_size(tmp_path: Path) -> None:
    metadata = {key.replace("qwen2.", "qwen3."): value for key, value in SMALL.items()}
    metadata |= {"general.architecture": "qwen3", "qwen3.attention.key_length": 32, "qwen3.attention.value_length": 32}
    config = parse_config(values_of(tmp_path, metadata, tied=True))
    assert (config.model_type, config.head_dim, config.tie_word_embeddings) == ("qwen3", 32, True)
    assert values_of(tmp_path, metadata)["architectures"] == ["Qwen3ForCausalLM"]


def test_defaults_are_those_of_the_file_format(tmp_path: Path) -> None:
    metadata = {key: value for key, value in SMALL.items() if "head_count_kv" not in key}
    config = parse_config(values_of(tmp_path, metadata))
    assert (config.num_kv_heads, config.rope_theta, config.rope_scaling, config.bos_token_id) == (
        4,
        10000.0,
        None,
        None,
    )
    assert config.eos_token_ids == ()


def test_yarn(tmp_path: Path) -> None:
    scaling = {
        "qwen2.rope.freq_base": 1e6,
        "qwen2.rope.scaling.type": "yarn",
        "qwen2.rope.scaling.factor": 4.0,
        "qwen2.rope.scaling.original_context_length": 128,
    }
    published = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    values = values_of(tmp_path, {**SMALL, **scaling})
    expected = parse_config({**values, "rope_scaling": published})
    assert parse_config(values) == expected
    assert isinstance(expected.rope_scaling, YarnScaling)
    betas = {"qwen2.rope.scaling.yarn_beta_fast": 16.0, "qwen2.rope.scaling.yarn_beta_slow": 2.0}
    found = parse_config(values_of(tmp_path, {**SMALL, **scaling, **betas})).rope_scaling
    assert found == replace(expected.rope_scaling, beta_fast=16.0, beta_slow=2.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"qwen2.rope.scaling.type": "none", "qwen2.rope.scaling.factor": 4.0},
        {"qwen2.rope.scaling.type": "linear"},
        {"qwen2.rope.scaling.factor": 0.0},
        {"qwen2.rope.scaling.factor": 1.0, "qwen2.rope.scale_linear": 1.0},
    ],
)
def test_scaling_that_changes_nothing(tmp_path: Path, changes: Mapping[str, Any]) -> None:
    assert "rope_scaling" not in values_of(tmp_path, {**SMALL, **changes})


SEVEN = {"qwen2.embedding_length": 3584, "qwen2.block_count": 28}
SUPPORTED = "only 'qwen2' and 'qwen3' are supported"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"general.architecture": "llama"}, f"FILE: general.architecture is 'llama'; {SUPPORTED}"),
    ({"general.architecture": "qwen2moe"}, f"FILE: general.architecture is 'qwen2moe'; {SUPPORTED}"),
    ({"general.architecture": ...}, "FILE: the key 'general.architecture' (string) is missing"),
    ({"general.type": "adapter"}, "FILE: general.type is 'adapter'; only files with a whole model are supported"),
    (
        {"general.quantization_version": 1},
        "FILE: general.quantization_version is 1; only 2 is supported: get a newer file of the model",
    ),
    ({"qwen2.block_count": ...}, "FILE: the key 'qwen2.block_count' (integer) is missing"),
    ({"qwen2.block_count": "28"}, "FILE: qwen2.block_count is '28', expected an integer from 1 to 16777216"),
    ({"qwen2.block_count": 5000}, "FILE: num_hidden_layers is 5000, expected an integer from 1 to 1024"),
    (
        {"qwen2.attention.head_count": [4, 4]},
        "FILE: qwen2.attention.head_count is [4, 4], expected an integer from 1 to 16777216",
    ),
    (
        {"qwen2.attention.layer_norm_rms_epsilon": ...},
        "FILE: the key 'qwen2.attention.layer_norm_rms_epsilon' (number) is missing",
    ),
    (
        {"qwen2.attention.layer_norm_rms_epsilon": float("nan")},
        "FILE: qwen2.attention.layer_norm_rms_epsilon is nan, expected a number from 0 to 1e+30",
    ),
    (
        SEVEN,
        "FILE: qwen2.rope.freq_base is missing, which means 10,000, but published models with hidden size 3584 and 28 "
        "layers have another value; get a newer file of the model",
    ),
    (
        {"qwen2.rope.scaling.factor": 4.0},
        "FILE: qwen2.rope.scaling.type is 'linear' with factor 4; only 'yarn' is supported",
    ),
    (
        {"qwen2.rope.scale_linear": 2.0},
        "FILE: qwen2.rope.scale_linear is 2; linear scaling is not supported",
    ),
    (
        {"qwen2.rope.scaling.type": "longrope", "qwen2.rope.scaling.factor": 4.0},
        "FILE: qwen2.rope.scaling.type is 'longrope' with factor 4; only 'yarn' is supported",
    ),
    (
        {"qwen2.rope.scaling.type": "yarn", "qwen2.rope.scaling.attn_factor": 2.0},
        "FILE: qwen2.rope.scaling.attn_factor other than 1 is not supported",
    ),
    (
        {"qwen2.attention.key_length": 16, "qwen2.attention.value_length": 32},
        "FILE: qwen2.attention.key_length 16, qwen2.attention.value_length 32 must be equal; "
        "other sizes are not supported",
    ),
    (
        {"tokenizer.ggml.tokens": ["a"] * 321},
        "FILE: tokenizer.ggml.tokens has 321 tokens, but the embedding has 320 rows",
    ),
    (
        {"tokenizer.ggml.eos_token_id": Typed(5, -1)},
        "FILE: tokenizer.ggml.eos_token_id is -1, expected a token id or a list of token ids",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_refusals(tmp_path: Path, changes: Mapping[str, Any], message: str) -> None:
    assert refusal(tmp_path, changes) == message


@pytest.mark.parametrize(("hidden", "layers"), [(1536, 28), (896, 24), (8192, 80)])
def test_theta_of_known_sizes_is_never_guessed(tmp_path: Path, hidden: int, layers: int) -> None:
    sizes = {"qwen2.embedding_length": hidden, "qwen2.block_count": layers}
    assert "qwen2.rope.freq_base is missing" in refusal(tmp_path, sizes)
    assert values_of(tmp_path, {**SMALL, **sizes, "qwen2.rope.freq_base": 1e4})["rope_theta"] == 1e4
