"""NumPy twins of the kernels: slow and simple. The tests compare every SIMD level with them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.formats import PackedTensor, dequantise, find_format
from qwchat.cpu.kernels.records import BLOCK, PACKED_BLOCK_BYTES, TOKEN_LANES

Floats = NDArray[np.float32]


def quantise(x: Floats) -> tuple[NDArray[np.int8], Floats, Floats]:
    """Quantise activations in blocks of 32 columns.

    Args:
        x: (tokens, columns) f32.

    Returns:
        Codes (tokens, columns) i8; scales and sums of codes (tokens, columns/32) f32.
    """
    blocks = x.reshape(len(x), -1, 32)
    largest = np.abs(blocks).max(-1)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > np.float32(1e-36))
    codes = np.rint(blocks * inverse[..., None]).astype(np.int8)
    poison = (blocks * np.float32(0)).sum(-1)
    return codes.reshape(x.shape), largest / np.float32(127) + poison, codes.sum(-1).astype(np.float32)


def activation_terms(x: Floats, terms: int) -> Floats:
    """Return the packed rows of activations before they are quantised.

    Args:
        x: (tokens, columns) f32.
        terms: 1 returns `x`; 2 puts behind each row what its quantisation loses.

    Returns:
        Rows (tokens * terms, columns) f32.
    """
    if terms == 1:
        return x
    codes, scales, _ = quantise(x)
    # The product and the difference are exact in f64, so that the result is rounded once, as by multiply-add.
    seen = codes.reshape(len(x), -1, 32) * scales[..., None].astype(np.float64)
    lost = (x - seen.reshape(x.shape)).astype(np.float32)
    return np.stack([x, lost], axis=1).reshape(-1, x.shape[1])


def packed_activations(x: Floats, terms: int = 1) -> NDArray[np.uint8]:
    """Quantise `x` (tokens, columns) into the layout of `records.ACTIVATIONS`: (groups, blocks, bytes) u8."""
    x = activation_terms(x, terms)
    codes, scales, sums = quantise(x)
    groups, blocks = -(-len(x) // TOKEN_LANES), x.shape[1] // BLOCK
    result = np.zeros((groups, blocks, PACKED_BLOCK_BYTES), np.uint8)
    for row in range(len(x)):
        group, lane = divmod(row, TOKEN_LANES)
        here = result[group]
        here[:, lane * BLOCK : (lane + 1) * BLOCK] = codes[row].reshape(blocks, BLOCK).view(np.uint8)
        here[:, TOKEN_LANES * BLOCK :].view(np.float32)[:, lane] = scales[row]
        here[:, TOKEN_LANES * BLOCK :].view(np.int32)[:, TOKEN_LANES + lane] = -128 * sums[row]
        here[:, TOKEN_LANES * BLOCK :].view(np.float32)[:, 2 * TOKEN_LANES + lane] = (0 - sums[row]) * scales[row]
    return result


def dequantised_activations(x: Floats, terms: int = 1) -> NDArray[np.float64]:
    """Return `x` (tokens, columns) f64 after quantisation, as the integer kernels see it."""
    codes, scales, _ = quantise(activation_terms(x, terms))
    rows = codes.reshape(len(codes), -1, 32) * scales[..., None].astype(np.float64)
    seen: NDArray[np.float64] = rows.reshape(len(x), terms, -1).sum(1)
    return seen


def multiply(packed: PackedTensor, x: Floats, bias: Floats | None = None, terms: int = 1) -> NDArray[np.float64]:
    """Return `x @ W.T`, (tokens, rows) f64.

    Args:
        packed: the weights; for integer formats, activations are quantised first.
        x: (tokens, columns) f32.
        bias: (rows) f32.
        terms: packed rows of each token, 1 or 2.
    """
    seen = dequantised_activations(x, terms) if find_format(packed.format).kernel == "integer" else x
    result = seen.astype(np.float64) @ dequantise(packed).astype(np.float64).T
    return result if bias is None else result + bias


def rms_norm(x: Floats, weight: Floats, epsilon: float) -> Floats:
    """Return RMSNorm of `x` (tokens, columns) with `weight` (columns)."""
    mean = np.square(x.astype(np.float64)).mean(-1, keepdims=True)
    return (weight * x / np.sqrt(mean + epsilon)).astype(np.float32)


def silu_multiply(gate: Floats, up: Floats) -> Floats:
    """Return `gate * sigmoid(gate) * up`, for arrays of any shape."""
    wide = gate.astype(np.float64)
    with np.errstate(over="ignore"):
        return (wide / (1 + np.exp(-wide)) * up).astype(np.float32)


def rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Apply RoPE to `x` (..., head_dim); `cos` and `sin` are (..., head_dim/2), in half-split order."""
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def hadamard(x: Floats) -> Floats:
    """Return the Walsh-Hadamard transform of each 32 of the last axis, with additions in the kernel's order."""
    result = x.astype(np.float32)
    for distance in (16, 1, 2, 4, 8):
        pairs = result.reshape(-1, 16 // distance, 2, distance)
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        result = np.stack([low + high, low - high], axis=2)
    return result.reshape(x.shape)


def quantise_kv(x: Floats) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Quantise `x` (..., head_dim) as an 8-bit cache does: codes i8, and scales (..., head_dim/32) f16."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scales = (np.abs(blocks).max(-1) / np.float32(127)).astype(np.float16)
    steps = scales.astype(np.float32)
    inverse = np.divide(np.float32(1), steps, out=np.zeros_like(steps), where=steps > 0)
    return np.rint(blocks * inverse[..., None]).astype(np.int8).reshape(x.shape), scales


def through_q8_cache(x: Floats) -> Floats:
    """Return `x` after a transform, and rounding as in an 8-bit cache; the transform is not undone."""
    codes, scales = quantise_kv(hadamard(x))
    blocks = codes.reshape(*scales.shape, 32) * scales[..., None].astype(np.float32)
    return blocks.reshape(x.shape).astype(np.float32)


def attention(query: Floats, keys: Floats, values: Floats) -> Floats:
    """Return the attention of one token, (num_heads, head_dim) f32.

    Args:
        query: (num_heads, head_dim), already scaled.
        keys: (positions, num_kv_heads, head_dim).
        values: (positions, num_kv_heads, head_dim).
    """
    group = len(query) // keys.shape[1]
    k, v = (np.repeat(array, group, axis=1).astype(np.float64) for array in (keys, values))
    scores = np.einsum("hd,phd->hp", query.astype(np.float64), k)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    result: Floats = np.einsum("hp,phd->hd", weights / weights.sum(-1, keepdims=True), v).astype(np.float32)
    return result


def attention_q8(query: Floats, keys: Floats, values: Floats, split: int) -> Floats:
    """Return `attention` over an 8-bit cache, with weights of 16 bits in each `split` of positions."""
    group = len(query) // keys.shape[1]
    seen = through_q8_cache(keys).astype(np.float64).repeat(group, 1)
    codes, scales = quantise_kv(hadamard(values))
    codes, wide_scales = codes.repeat(group, 1), scales.astype(np.float64).repeat(group, 1)
    scores = np.einsum("hd,phd->hp", through_q8_cache(query).astype(np.float64), seen) / 32
    top = scores.max(-1, keepdims=True)
    result = np.zeros(query.shape)
    for start in range(0, keys.shape[0], split):
        part = slice(start, start + split)
        local = scores[:, part].max(-1, keepdims=True)
        weights = np.exp(scores[:, part] - local)
        for block in range(query.shape[1] // 32):
            unit = wide_scales[part, :, block]
            step = unit.max(0) / 32767
            rounded = np.rint(weights * (unit / step).T)
            dims = slice(block * 32, block * 32 + 32)
            sums = np.einsum("hp,phd->hd", rounded, codes[part, :, dims].astype(np.float64))
            result[:, dims] += np.exp(local - top) * step[:, None] * sums
    return hadamard(result / np.exp(scores - top).sum(-1, keepdims=True)) / np.float32(32)
