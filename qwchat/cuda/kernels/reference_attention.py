"""NumPy twin of decode attention: the same values in float64, without tiles, splits or the order of additions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwchat.cuda.kernels import reference_gemv

Floats = NDArray[np.float32]
_BLOCK = 32


@dataclass
class CachedLayer:
    """Keys and values of a layer; scales of an 8-bit cache, otherwise None.

    Attributes:
        keys: (kv_heads, capacity, head_dim) f16 or i8.
        values: like `keys`.
        key_scales: (kv_heads, capacity, head_dim/32) f16.
        value_scales: like `key_scales`.
    """

    keys: NDArray[Any]
    values: NDArray[Any]
    key_scales: NDArray[np.float16] | None = None
    value_scales: NDArray[np.float16] | None = None


@dataclass(frozen=True)
class AttentionInput:
    """What is the same for all tokens of a layer.

    Attributes:
        heads: number of query heads.
        cos: (context, head_dim/2) f32.
        sin: (context, head_dim/2) f32.
        q_norm: (head_dim) f32 or None.
        k_norm: (head_dim) f32 or None.
        key_offset: (kv_heads, head_dim) f32 or None.
        epsilon: of the norms.
    """

    heads: int
    cos: Floats
    sin: Floats
    q_norm: Floats | None
    k_norm: Floats | None
    key_offset: Floats | None
    epsilon: float


def attend(layer: AttentionInput, cache: CachedLayer, qkv: Floats, position: int) -> Floats:
    """Append the keys and values of the tokens to the cache, and return the attention (tokens, heads · head_dim) f32.

    Args:
        layer: norms, angles and offsets.
        cache: written at `position` and the following ones.
        qkv: (tokens, (heads + 2 · kv_heads) · head_dim) f32.
        position: where the first token stands.
    """
    kv_heads, _, head_dim = cache.keys.shape
    tokens, places = len(qkv), slice(position, position + len(qkv))
    rows = qkv.reshape(tokens, layer.heads + 2 * kv_heads, head_dim)
    query, key, value = np.split(rows, [layer.heads, layer.heads + kv_heads], axis=1)
    cos, sin = layer.cos[places, None], layer.sin[places, None]
    query = _rotate(_norm(query, layer.q_norm, layer.epsilon), cos, sin) * np.float32(head_dim**-0.5)
    key = _rotate(_norm(key, layer.k_norm, layer.epsilon), cos, sin)
    if layer.key_offset is not None:
        key = key - layer.key_offset
    _append(cache, key, value, places)
    end = position + tokens
    keys, values = _stored(cache.keys, cache.key_scales, end), _stored(cache.values, cache.value_scales, end)
    seen = query if cache.key_scales is None else _dequantised(*quantise_kv(hadamard(query) * np.float32(1 / _BLOCK)))
    out = np.empty((tokens, layer.heads, head_dim), np.float32)
    group = layer.heads // kv_heads
    for token in range(tokens):
        for head in range(layer.heads):
            out[token, head] = _attention(
                seen[token, head], keys[head // group, : position + token + 1], values[head // group]
            )
    if cache.key_scales is not None:
        out = hadamard(out) / np.float32(_BLOCK)
    return out.reshape(tokens, -1)


def hadamard(x: Floats) -> Floats:
    """Return the Walsh-Hadamard transform of each 32 of the last axis, with additions in the kernel's order."""
    result = x.astype(np.float32)
    for distance in (16, 1, 2, 4, 8):
        pairs = result.reshape(-1, _BLOCK // 2 // distance, 2, distance)
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        result = np.stack([low + high, low - high], axis=2)
    return result.reshape(x.shape)


def quantise_kv(x: Floats) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Quantise `x` (..., head_dim) as an 8-bit cache does: codes i8, and scales (..., head_dim/32) f16."""
    blocks = x.reshape(*x.shape[:-1], -1, _BLOCK)
    poison = (blocks * np.float32(0)).sum(-1)
    scales = (np.abs(blocks).max(-1) / np.float32(127) + poison).astype(np.float16)
    steps = scales.astype(np.float32)
    inverse = np.divide(np.float32(1), steps, out=np.zeros_like(steps), where=steps > 0)
    codes = np.clip(np.rint(np.nan_to_num(blocks * inverse[..., None], nan=0)), -127, 127)
    return codes.astype(np.int8).reshape(x.shape), scales


def quantise(x: Floats) -> tuple[NDArray[np.int8], NDArray[np.uint32]]:
    """Quantise activations (rows, columns) in groups of 32.

    Returns:
        Codes (rows, columns) i8, and records {f32 scale, i32 sum of codes}, (rows, columns/32, 2) u32.
    """
    codes, scales, sums = reference_gemv.quantise(x)
    return codes, np.stack([scales.view(np.uint32), sums.view(np.uint32)], -1)


def _norm(x: Floats, weight: Floats | None, epsilon: float) -> Floats:
    """Return RMSNorm with the kernel's order of additions, since a code may depend on the last bit."""
    if weight is None:
        return x
    lanes, total = x.reshape(*x.shape[:-1], -1, _BLOCK), np.zeros((*x.shape[:-1], _BLOCK), np.float32)
    for block in range(lanes.shape[-2]):
        total = reference_gemv.fma(lanes[..., block, :], lanes[..., block, :], total)
    mean = reference_gemv.lane_sum(total, (16, 8, 4, 2, 1))[..., None] / np.float32(x.shape[-1])
    factor = np.float32(1) / np.sqrt(mean + np.float32(epsilon))
    return weight * (x * factor)


def _rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def _append(cache: CachedLayer, key: Floats, value: Floats, places: slice) -> None:
    key, value = key.swapaxes(0, 1), value.swapaxes(0, 1)
    if cache.key_scales is None or cache.value_scales is None:
        cache.keys[:, places], cache.values[:, places] = _halves(key), _halves(value)
        return
    cache.keys[:, places], cache.key_scales[:, places] = quantise_kv(hadamard(key))
    cache.values[:, places], cache.value_scales[:, places] = quantise_kv(hadamard(value))


def _halves(x: Floats) -> NDArray[np.float16]:
    halves = x.astype(np.float16)
    return np.where(np.isinf(halves), np.float16(np.nan), halves)


def _stored(codes: NDArray[Any], scales: NDArray[np.float16] | None, end: int) -> NDArray[np.float64]:
    if scales is None:
        return codes[:, :end].astype(np.float64)
    return _dequantised(codes[:, :end], scales[:, :end]).astype(np.float64)


def _dequantised(codes: NDArray[np.int8], scales: NDArray[np.float16]) -> Floats:
    blocks = codes.reshape(*scales.shape, _BLOCK) * scales[..., None].astype(np.float32)
    return blocks.reshape(codes.shape).astype(np.float32)


def _attention(query: Floats, keys: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    scores = keys @ query.astype(np.float64)
    weights = np.exp(scores - scores.max())
    result: NDArray[np.float64] = weights @ values[: len(keys)] / weights.sum()
    return result
