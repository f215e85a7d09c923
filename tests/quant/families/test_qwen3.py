"""Reading config.json of Qwen3: head_dim is required, heads have norms instead of biases."""

from __future__ import annotations

from typing import Any

import pytest

from quant.errors import CheckpointError
from quant.families import expected_tensors, parameter_count, parse_config
from tests.quant.checkpoints import CONFIG

QWEN3_4B = {
    **CONFIG,
    "model_type": "qwen3",
    "attention_bias": False,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "max_position_embeddings": 40960,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}


def test_published_parameter_counts() -> None:
    assert parameter_count(parse_config(QWEN3_4B)) == 4_022_468_096
    smallest = {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_hidden_layers": 28}
    assert parameter_count(parse_config({**QWEN3_4B, **smallest})) == 596_049_920


def test_tensors() -> None:
    expected = expected_tensors(parse_config(QWEN3_4B))
    assert [name for name in expected if name.endswith(".bias")] == []
    assert expected["model.layers.35.self_attn.q_norm.weight"] == (128,)
    assert expected["model.layers.35.self_attn.k_norm.weight"] == (128,)
    assert expected["model.layers.35.self_attn.q_proj.weight"] == (4096, 2560)
    assert expected["model.layers.35.self_attn.o_proj.weight"] == (2560, 4096)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"head_dim": None}, r"the key 'head_dim' \(integer\) is missing"),
        ({"head_dim": 127}, "head_dim 127 is odd"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"attention_bias": "no"}, "expected true or false"),
        ({"use_sliding_window": True}, "use_sliding_window is true"),
    ],
)
def test_refusals(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse_config({**QWEN3_4B, **overrides})
