"""Reading config.json of Qwen2: typed values, explicit defaults, refusals that name the file and the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quant.errors import CheckpointError, ContainerError
from quant.families import expected_tensors, parameter_count, parse_config, read_config
from quant.model_config import ModelConfig
from tests.quant.checkpoints import CONFIG

QWEN2_7B = {
    **CONFIG,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rope_theta": 1000000.0,
    "vocab_size": 152064,
}


def read(**overrides: Any) -> ModelConfig:
    values = {**CONFIG, **overrides}
    return parse_config({key: value for key, value in values.items() if value is not ...})


def test_published_parameter_counts() -> None:
    assert parameter_count(parse_config(QWEN2_7B)) == 7_615_616_512
    half_billion = {
        **QWEN2_7B,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
    }
    small = parse_config(half_billion)
    assert parameter_count(small) == 494_032_768
    assert len(expected_tensors(small)) == 290
    assert len(expected_tensors(parse_config(QWEN2_7B))) == 339
    assert "lm_head.weight" not in expected_tensors(small)


def test_values_and_defaults() -> None:
    config = read(head_dim=32, eos_token_id=[282, 280], bos_token_id=None, torch_dtype=..., tie_word_embeddings=...)
    assert (config.head_dim, config.eos_token_ids, config.bos_token_id) == (32, (282, 280), None)
    assert config.torch_dtype is None
    assert not config.tie_word_embeddings
    assert read().head_dim == 16
    assert read(eos_token_id=None).eos_token_ids == ()
    assert read(rms_norm_eps=1).rms_norm_eps == 1.0


def test_newer_spelling_of_rope() -> None:
    config = read(rope_theta=..., rope_parameters={"rope_theta": 1e6, "rope_type": "default"}, dtype="float32")
    assert config.rope_theta == 1e6
    assert config.rope_scaling is None
    assert config.torch_dtype == "float32"


def test_dual_chunk_attention_ends_with_the_first_chunk() -> None:
    chunks = {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}
    million = {"max_position_embeddings": 1_010_000, "dual_chunk_attention_config": chunks}
    assert read(**million).max_position_embeddings == 253_952
    assert read(**{**million, "max_position_embeddings": 32768}).max_position_embeddings == 32768


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_yarn(key: str) -> None:
    scaling = {key: "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    yarn = read(rope_scaling=scaling).rope_scaling
    assert yarn is not None
    assert (yarn.factor, yarn.original_max_position_embeddings) == (4.0, 32768)
    assert (yarn.beta_fast, yarn.beta_slow) == (32.0, 1.0)
    assert yarn.attention_factor == pytest.approx(1.138629436)  # 0.1 ln 4 + 1, reference value


def test_yarn_variants() -> None:
    def factor(**extra: Any) -> float:
        yarn = read(rope_scaling={"type": "yarn", "factor": 4.0, **extra}).rope_scaling
        assert yarn is not None
        assert yarn.original_max_position_embeddings == CONFIG["max_position_embeddings"]
        return yarn.attention_factor

    assert factor(attention_factor=1.5) == 1.5
    assert factor(mscale=1.0, mscale_all_dim=1.0) == 1.0
    assert factor(mscale=2.0, mscale_all_dim=1.0) == pytest.approx(1.2772588722 / 1.1386294361)
    assert factor(factor=0.5) == 1.0
    parameters = {"rope_type": "yarn", "factor": 2, "rope_theta": 5000.0, "original_max_position_embeddings": 64}
    config = read(rope_theta=..., rope_parameters=parameters)
    assert config.rope_theta == 5000.0
    assert config.rope_scaling is not None
    assert config.rope_scaling.original_max_position_embeddings == 64


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; only 'qwen2' and 'qwen3' are supported"),
        ({"model_type": "qwen2_moe"}, "only 'qwen2'"),
        ({"model_type": ...}, "model_type is None"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window is true"),
        ({"use_sliding_window": "no"}, "expected true or false"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"quantization_config": {"bits": 4}}, "already quantised"),
        ({"hidden_size": ...}, r"the key 'hidden_size' \(integer\) is missing"),
        ({"num_key_value_heads": ...}, "'num_key_value_heads'"),
        ({"rope_theta": ...}, "'rope_theta'"),
        ({"rms_norm_eps": ...}, "'rms_norm_eps'"),
        ({"hidden_size": "64"}, "hidden_size is '64', expected an integer"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": -64}, "hidden_size is -64"),
        ({"vocab_size": 10**30}, "vocab_size"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"rope_theta": 10**400}, "rope_theta is a number with many digits, expected a number from 2 to 1e"),
        ({"rope_theta": 1}, "rope_theta is 1, expected a number from 2"),  # RoPE divides by its logarithm
        ({"rope_theta": 1e-300}, "rope_theta is 1e-300"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is a number with many digits"),
        ({"rms_norm_eps": 1e-300}, "rms_norm_eps is 1e-300"),
        ({"rms_norm_eps": 1e29}, "rms_norm_eps is 1e"),
        ({"hidden_size": 2**24, "num_attention_heads": 4096}, "num_attention_heads is 4096"),
        ({"head_dim": 2**20}, "head_dim is 1048576"),
        (
            {"hidden_size": 2**24, "intermediate_size": 2**24, "num_hidden_layers": 1024, "head_dim": 16},
            "of [0-9,]+ weights",
        ),
        ({"hidden_act": [[[[[[[[["x"]]]]]]]]] * 10_000}, "hidden_act is .{,60};"),
        ({"hidden_act": {"x" * 10_000: "y" * 10_000}}, "hidden_act is .{,60};"),
        ({"eos_token_id": [1] * 1000}, "eos_token_id lists 1,000 token ids"),
        ({"torch_dtype": "x" * 10_000}, "torch_dtype is 'x+..., expected a string"),
        ({"hidden_size": 66}, "hidden_size 66 is not a multiple of num_attention_heads 4"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
        ({"eos_token_id": [1, None]}, "eos_token_id"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
        ({"torch_dtype": 16}, "torch_dtype is 16"),
        ({"dual_chunk_attention_config": 5}, "dual_chunk_attention_config is 5, expected an object"),
        (
            {"dual_chunk_attention_config": {"chunk_size": 8, "local_size": 8}},
            "local_size 8 is not less than chunk_size 8",
        ),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn', expected an object"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope type 'linear' is not supported"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: the key 'factor'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "truncate": False}}, "truncate"),
        ({"rope_scaling": {"type": "yarn", "factor": 1e29}}, "factor is 1e"),
        ({"rope_scaling": {"type": "yarn", "factor": 10**400}}, "factor is a number with many digits"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": 1e-300}}, "beta_fast is 1e-300"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_slow": 1e29}}, "beta_slow is 1e"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2}}, "beta_fast 1 is less than"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "attention_factor": 1e29}}, "attention_factor is 1e"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "mscale": 1e29}}, "mscale is 1e"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)
def test_refusals(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read(**overrides)
    assert str(caught.value).startswith("config.json:")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"[1]", "contains a JSON list"),
        (b"\xff\xfe{}", "is not UTF-8"),
        (b"[" * 200_000, "cannot be parsed"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be parsed"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_missing_file_and_error_class(tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match="does not exist"):
        read_config(tmp_path, ContainerError)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "model_type": "gpt2"}))
    with pytest.raises(ContainerError, match="model_type is 'gpt2'"):
        read_config(tmp_path, ContainerError)
    (tmp_path / "config.json").write_text(" " * (2 << 20))
    with pytest.raises(ContainerError, match="larger than"):
        read_config(tmp_path, ContainerError)
