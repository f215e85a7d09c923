"""Rotary tables, compared with those of transformers."""

from __future__ import annotations

import numpy as np
import pytest

from quant.families import parse_config
from qwchat.model.rope import inverse_frequencies, rope_tables

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("theta", [1e4, 1e6, 1e7])
@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"factor": 4.0, "original_max_position_embeddings": 32768},
        {"factor": 4.0, "original_max_position_embeddings": 131072},
        {"factor": 2.0, "original_max_position_embeddings": 512, "attention_factor": 1.5},
        {"factor": 8.0, "original_max_position_embeddings": 4096, "beta_fast": 16.0, "beta_slow": 2.0},
    ],
    ids=["plain", "yarn", "base", "short", "betas"],
)
def test_tables_equal_the_reference(head_dim: int, theta: float, scaling: dict[str, float] | None) -> None:
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    rope = {"rope_type": "default", **({} if scaling is None else {**scaling, "rope_type": "yarn"})}
    values = {
        "model_type": "qwen2",
        "hidden_size": head_dim * 4,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "eos_token_id": 0,
    }
    ours = parse_config(
        {**values, "rope_theta": theta, "rope_scaling": None if scaling is None else {**scaling, "rope_type": "yarn"}}
    )
    config = transformers.Qwen2Config(**values, rope_parameters={"rope_theta": theta, **rope})
    reference = Qwen2RotaryEmbedding(config)
    cos, sin = reference(torch.zeros(1, 1, 1), torch.arange(3000)[None])

    frequencies, factor = inverse_frequencies(ours)
    np.testing.assert_allclose(frequencies, reference.inv_freq.numpy(), rtol=1.2e-7)
    assert factor == pytest.approx(reference.attention_scaling)
    our_cos, our_sin = rope_tables(ours, 0, 3000)
    np.testing.assert_allclose(our_cos, cos[0, :, : head_dim // 2].numpy(), atol=5e-7)
    np.testing.assert_allclose(our_sin, sin[0, :, : head_dim // 2].numpy(), atol=5e-7)
