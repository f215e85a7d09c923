"""Rotary position tables, with YaRN.

The numbers follow transformers' float32 arithmetic step by step. At position 3,000 one unit in the last place of an
inverse frequency turns a key by 2e-4 radians, which the outliers in the key bias of Qwen2 (norm 900) make visible in
the logits. Seven correct digits are therefore not enough. Only powers, cosines and sines are computed in float64 and
rounded once: float32 library functions differ between machines, whereas a correctly rounded value does not.

Sources: Su et al. 2021 (RoPE), Peng et al. 2023 (YaRN), transformers `modeling_rope_utils.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from quant.model_config import ModelConfig, YarnScaling

Float32Array = npt.NDArray[np.float32]


def inverse_frequencies(config: ModelConfig) -> tuple[Float32Array, float]:
    """Return the angle per position of each pair of features.

    Args:
        config: `head_dim`, `rope_theta` and `rope_scaling` are read.

    Returns:
        Inverse frequencies in radians per position, (head_dim/2,) f32, and the factor that cosines and sines are
        multiplied by (1.0 without YaRN).
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    periods = np.power(float(config.rope_theta), exponents.astype(np.float64)).astype(np.float32)
    plain = np.float32(1.0) / periods
    if config.rope_scaling is None:
        return plain, 1.0
    yarn = config.rope_scaling
    interpolated = np.float32(1.0) / (np.float32(yarn.factor) * periods)
    kept = np.float32(1.0) - _yarn_ramp(yarn, config.head_dim, config.rope_theta)
    mixed = interpolated * (np.float32(1.0) - kept) + plain * kept
    return mixed, yarn.attention_factor


def rope_tables(config: ModelConfig, start: int, stop: int) -> tuple[Float32Array, Float32Array]:
    """Return cosines and sines for the positions `start` to `stop - 1`.

    Args:
        config: as for `inverse_frequencies`.
        start: first position, counted from 0.
        stop: one past the last position.

    Returns:
        cos and sin, each (stop - start, head_dim/2) f32, both multiplied by the attention factor. Feature i is paired
        with feature i + head_dim/2 (half-split order, never interleaved).
    """
    frequencies, factor = inverse_frequencies(config)
    positions = np.arange(start, stop, dtype=np.float32)
    angles = (positions[:, None] * frequencies[None, :]).astype(np.float64)
    scale = np.float32(factor)
    return np.cos(angles).astype(np.float32) * scale, np.sin(angles).astype(np.float32) * scale


def _yarn_ramp(yarn: YarnScaling, head_dim: int, theta: float) -> Float32Array:
    """Return the share of interpolation of each pair, (head_dim/2,) f32: 0 keeps fast pairs, 1 stretches slow pairs."""
    low = max(math.floor(_pair_of_rotations(yarn.beta_fast, yarn, head_dim, theta)), 0)
    high: float = min(math.ceil(_pair_of_rotations(yarn.beta_slow, yarn, head_dim, theta)), head_dim - 1)
    if low == high:
        high += 0.001  # as in transformers, to avoid a division by zero
    pairs = np.arange(head_dim // 2, dtype=np.float32)
    ramp: Float32Array = (pairs - np.float32(low)) / np.float32(high - low)
    return ramp.clip(0.0, 1.0)


def _pair_of_rotations(rotations: float, yarn: YarnScaling, head_dim: int, theta: float) -> float:
    """Return the fractional index of the pair that turns `rotations` times within the original context."""
    return (
        head_dim * math.log(yarn.original_max_position_embeddings / (rotations * 2 * math.pi)) / (2 * math.log(theta))
    )
