"""NumPy twins of RoPE, cache and attention of prefill, with the same roundings to f16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwchat.cuda.kernels.reference_prefill import Floats, Halves

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Heads:
    """Queries, keys and values of some tokens: (tokens, heads or kv_heads, head_dim) f32, rotated."""

    queries: Floats
    keys: Floats
    values: Floats


@dataclass(frozen=True)
class Rotation:
    """What RoPE needs: norms of one head or None, angles of the tokens (tokens, head_dim/2), offsets or None."""

    cos: Floats
    sin: Floats
    q_norm: Floats | None = None
    k_norm: Floats | None = None
    key_offset: Floats | None = None
    epsilon: float = 1e-6


def query_scale(head_dim: int) -> np.float32:
    """Return what queries are multiplied by, so that scores are exponents of 2."""
    return np.float32(LOG2_E / np.sqrt(head_dim))


def rope(qkv: Floats, heads: int, kv_heads: int, head_dim: int, rotation: Rotation) -> Heads:
    """Split `qkv` (tokens, (heads + 2 * kv_heads) * head_dim), normalise and rotate; queries are scaled."""
    plain = qkv.reshape(len(qkv), -1, head_dim)
    queries, keys, values = np.split(plain, [heads, heads + kv_heads], axis=1)
    if rotation.q_norm is not None:
        queries = _rms_norm(queries, rotation.q_norm, rotation.epsilon)
    if rotation.k_norm is not None:
        keys = _rms_norm(keys, rotation.k_norm, rotation.epsilon)
    cos, sin = rotation.cos[:, None], rotation.sin[:, None]
    keys = _rotate(keys, cos, sin)
    if rotation.key_offset is not None:
        keys = keys - rotation.key_offset.reshape(kv_heads, head_dim)
    return Heads(_rotate(queries, cos, sin) * query_scale(head_dim), keys, values)


def transformed(heads: Heads) -> Heads:
    """Return what an 8-bit cache works on: transformed, the queries times 1/32."""
    queries = hadamard(heads.queries) * np.float32(1 / 32)
    return Heads(queries, hadamard(heads.keys), hadamard(heads.values))


def hadamard(x: Floats) -> Floats:
    """Return the Walsh-Hadamard transform of each 32 of the last axis, with additions in the kernels' order."""
    result = x.astype(np.float32)
    for distance in (16, 1, 2, 4, 8):
        pairs = result.reshape(-1, 16 // distance, 2, distance)
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        result = np.stack([low + high, low - high], axis=2)
    return result.reshape(x.shape)


def quantised(x: Floats) -> tuple[NDArray[np.int8], Halves]:
    """Return transformed keys or values (…, head_dim) as codes, and scales (…, head_dim/32)."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scales = (np.abs(blocks).max(-1) / np.float32(127) + (blocks * np.float32(0)).sum(-1)).astype(np.float16)
    widths = scales.astype(np.float32)
    inverse = np.divide(np.float32(1), widths, out=np.zeros_like(widths), where=widths > 0)
    codes = np.rint(np.nan_to_num(blocks * inverse[..., None], nan=0))
    return np.clip(codes, -127, 127).astype(np.int8).reshape(x.shape), scales


def decoded(codes: NDArray[np.int8], scales: Halves) -> Halves:
    """Return an 8-bit cache as attention reads it: each product rounded to f16."""
    blocks = codes.reshape(*scales.shape, 32).astype(np.float32) * scales[..., None].astype(np.float32)
    return blocks.reshape(codes.shape).astype(np.float16)


def attention(queries: Halves, keys: Halves, values: Halves, position: int, tile: int) -> Floats:
    """Return causal attention, (tokens, heads, head_dim).

    Args:
        queries: (tokens, heads, head_dim), scaled.
        keys: (kv_heads, positions, head_dim), at least `position` + tokens.
        values: as `keys`.
        position: of the first token.
        tile: positions between updates of the maximum.
    """
    tokens, heads, head_dim = queries.shape
    group = heads // len(keys)
    result = np.empty((tokens, heads, head_dim), np.float32)
    for head in range(heads):
        own, seen = keys[head // group].astype(np.float64), values[head // group].astype(np.float64)
        result[:, head] = _attend(queries[:, head].astype(np.float64), own, seen, position, tile)
    return result


def _attend(queries: NDArray[Any], keys: NDArray[Any], values: NDArray[Any], position: int, tile: int) -> Floats:
    """Return the attention of one head, with a running maximum."""
    tokens = len(queries)
    limits = position + np.arange(tokens)[:, None]
    maximum, total = np.full((tokens, 1), -np.inf, np.float32), np.zeros((tokens, 1), np.float32)
    output = np.zeros(queries.shape, np.float32)
    for start in range(0, position + tokens, tile):
        places = np.arange(start, min(start + tile, position + tokens))
        scores = (queries @ keys[places].T).astype(np.float32)
        scores[places[None] > limits] = -np.inf
        top = np.maximum(maximum, scores.max(1, keepdims=True))
        factor, weights = np.exp2(maximum - top), np.exp2(scores - top)
        maximum, total = top, total * factor + weights.sum(1, keepdims=True)
        output = (output * factor + weights.astype(np.float16).astype(np.float64) @ values[places]).astype(np.float32)
    result: Floats = output / total
    return result


def _rms_norm(x: Floats, weight: Floats, epsilon: float) -> Floats:
    """Return RMSNorm of the last axis."""
    mean = np.square(x.astype(np.float64)).mean(-1, keepdims=True)
    return (weight * x / np.sqrt(mean + epsilon)).astype(np.float32)


def _rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Apply RoPE to `x` (…, head_dim), in half-split order."""
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
