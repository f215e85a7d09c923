"""What is subtracted from the keys of a layer before they are rounded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.model_config import ModelConfig
from qwchat.model import rope

_SLOW_POSITIONS = 8192  # dimensions that rotate by less than one radian over this many positions count as slow


def key_offsets(config: ModelConfig, bias: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what is subtracted from every rotated key of a layer before an 8-bit cache rounds it.

    Adding the same vector to all keys adds the same number to all scores of a query, and leaves the softmax unchanged.
    So the part of the keys that does not depend on the position may be dropped ("smoothing" of K in SageAttention,
    Zhang et al. 2024). Here that is the bias in the dimensions that RoPE hardly rotates: in Qwen2 it reaches hundreds
    there, and would determine the scale of its 8-bit group alone.

    Args:
        config: the model's shapes.
        bias: (num_kv_heads * head_dim,) f32, the bias of `k_proj`.

    Returns:
        (num_kv_heads * head_dim,) f32.
    """
    frequencies, factor = rope.inverse_frequencies(config)
    slow = np.tile(np.asarray(frequencies) * _SLOW_POSITIONS < 1, 2)
    heads = bias.reshape(config.num_kv_heads, config.head_dim)
    result: NDArray[np.float32] = np.where(slow, heads * np.float32(factor), 0).astype(np.float32).reshape(-1)
    return result
