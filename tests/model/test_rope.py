"""Rotary tables, compared with check values of the model family."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quant.model_config import ModelConfig, YarnScaling
from qwchat.model.rope import inverse_frequencies, rope_tables

ATTENTION_FACTOR = 0.1 * math.log(4.0) + 1.0


def config(head_dim: int, scaling: YarnScaling | None = None) -> ModelConfig:
    return ModelConfig(
        model_type="qwen2",
        hidden_size=head_dim * 4,
        intermediate_size=64,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=head_dim,
        vocab_size=100,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_theta=1_000_000.0,
        rope_scaling=scaling,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_ids=(0,),
        torch_dtype="bfloat16",
    )


def yarn(factor: float = 4.0, attention_factor: float = ATTENTION_FACTOR) -> YarnScaling:
    return YarnScaling(factor, 32768, 32.0, 1.0, attention_factor)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_plain_frequencies_follow_the_formula(head_dim: int) -> None:
    frequencies, factor = inverse_frequencies(config(head_dim))
    expected = [1_000_000.0 ** (-2 * pair / head_dim) for pair in range(head_dim // 2)]
    np.testing.assert_allclose(frequencies, expected, rtol=3e-7)
    assert factor == 1.0
    assert frequencies.dtype == np.float32


@pytest.mark.parametrize(
    ("head_dim", "ratios"),
    [
        (128, {0: 1.0, 23: 1.0, 24: 0.955882, 31: 0.647059, 40: 0.25, 63: 0.25}),
        (64, {0: 1.0, 11: 1.0, 12: 0.916667, 20: 0.25, 31: 0.25}),
    ],
)
def test_yarn_stretches_the_slow_pairs(head_dim: int, ratios: dict[int, float]) -> None:
    plain, _ = inverse_frequencies(config(head_dim))
    stretched, factor = inverse_frequencies(config(head_dim, yarn()))
    for pair, ratio in ratios.items():
        assert stretched[pair] / plain[pair] == pytest.approx(ratio, abs=2e-6)
    assert factor == pytest.approx(1.138629436)


def test_the_factor_multiplies_both_tables() -> None:
    cos, sin = rope_tables(config(64, yarn(attention_factor=1.5)), 0, 50)
    np.testing.assert_allclose(cos**2 + sin**2, 2.25, rtol=1e-6)
    np.testing.assert_array_equal(cos[0], np.float32(1.5))


def test_tables_are_exact_in_any_range() -> None:
    cos, sin = rope_tables(config(128), 0, 3000)
    assert cos.shape == sin.shape == (3000, 64)
    assert cos.dtype == sin.dtype == np.float32
    for start, stop in ((0, 1), (7, 7), (1234, 1300), (2999, 3000)):
        part_cos, part_sin = rope_tables(config(128), start, stop)
        np.testing.assert_array_equal(part_cos, cos[start:stop])
        np.testing.assert_array_equal(part_sin, sin[start:stop])


@pytest.mark.parametrize("scaling", [None, yarn()])
def test_a_product_depends_on_the_distance_only(scaling: YarnScaling | None) -> None:
    def rotated(vector: np.ndarray, position: int) -> np.ndarray:
        cos, sin = (table[0].astype(np.float64) for table in rope_tables(config(64, scaling), position, position + 1))
        first, second = vector[:32], vector[32:]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin])

    query, key = np.random.default_rng(3).standard_normal((2, 64))
    near = rotated(query, 17) @ rotated(key, 4)
    far = rotated(query, 1013) @ rotated(key, 1000)
    assert near == pytest.approx(far, abs=2e-3)


def test_equal_ends_of_the_ramp_divide_by_no_zero() -> None:
    scaling = YarnScaling(4.0, 1, 32.0, 32.0, 1.0)
    frequencies, _ = inverse_frequencies(config(64, scaling))
    assert np.isfinite(frequencies).all()
