"""Grouped-query attention over a KV cache, tiled over the query heads of a KV head.

Cache layout, f32: K (layer, kv_head, position/16, head_dim, 16), V (layer, kv_head, head_dim/16, position, 16), so that
both products are the float tile of the matrix kernel: lanes are positions for q.K and head dimensions for p.V.

Positions are worked on in splits of SPLIT with one softmax each, merged in order (Milakov and Gimelshein, 2018; split
over positions as in Flash-Decoding).  Splits start at fixed positions, so a token's result does not depend on which
tokens share its chunk nor on the number of threads.
"""

from __future__ import annotations

import numpy as np

from qwchat.kernels import simd
from qwchat.kernels.elementwise import exponential
from qwchat.kernels.formats import F32
from qwchat.kernels.jit import inlined, kernel
from qwchat.kernels.matmul import run_tile
from qwchat.kernels.records import PARTIAL_HEADER, SPLIT

_NONE = np.float32(-np.inf)


@kernel
def rotate(x, cos, sin, head_dim, scale):
    """RoPE on one head in place, half-split as in Hugging Face's rotate_half; multiplied by ``scale`` (f32).

    ``cos``, ``sin`` (head_dim/2) f32: the angles of the token's position.
    """
    half = head_dim * 2
    factor = simd.splat(scale)
    for column in range(0, half, 64):
        c, s = simd.load_f32(cos + column), simd.load_f32(sin + column)
        low, high = simd.load_f32(x + column), simd.load_f32(x + half + column)
        rotated_low = simd.subtract(simd.multiply(low, c), simd.multiply(high, s))
        rotated_high = simd.add(simd.multiply(high, c), simd.multiply(low, s))
        simd.store_f32(x + column, simd.multiply(rotated_low, factor))
        simd.store_f32(x + half + column, simd.multiply(rotated_high, factor))


@kernel
def store_key(cache, kv_head, position, key):
    """Writes one head's rotated key (head_dim) f32 into its lane of the cache."""
    block = kv_head * (cache.capacity // 16) + position // 16
    lane = cache.k + block * cache.head_dim * 64 + (position % 16) * 4
    for index in range(cache.head_dim):
        simd.poke_f32(lane + index * 64, simd.peek_f32(key + index * 4))


@kernel
def store_value(cache, kv_head, position, value):
    """Writes one head's value (head_dim) f32 into the cache."""
    tiles = cache.head_dim // 16
    for tile in range(tiles):
        target = cache.v + ((kv_head * tiles + tile) * cache.capacity + position) * 64
        simd.store_f32(target, simd.load_f32(value + tile * 64))


@inlined
def partial_stride(cache):
    """Bytes of one head's partial result: header and head_dim sums."""
    return PARTIAL_HEADER + cache.head_dim * 4


@inlined
def _softmax(scores, count, partial):
    """Scores (SPLIT) f32 -> weights in place, zero from ``count`` to the next multiple of 16; maximum and sum noted."""
    end = (count + 15) // 16 * 64
    largest = simd.splat(_NONE)
    for offset in range(0, end, 64):
        value = simd.keep_lanes(simd.load_f32(scores + offset), count - offset // 4, _NONE)
        largest = simd.maximum(largest, value)
    top = simd.max_lanes(largest)
    total = simd.splat(np.float32(0))
    for offset in range(0, end, 64):
        value = simd.keep_lanes(simd.load_f32(scores + offset), count - offset // 4, _NONE)
        weight = exponential(simd.subtract(value, simd.splat(top)))
        simd.store_f32(scores + offset, weight)
        total = simd.add(total, weight)
    simd.poke_f32(partial, top)
    simd.poke_f32(partial + 4, simd.sum_lanes(total))


@kernel
def attend_split(cache, query, kv_head, start, stop, scores, partial):
    """Attention of one token's query heads of ``kv_head`` to positions ``start .. stop``, at most SPLIT of them.

    ``query`` (group, head_dim) f32, rotated and scaled; ``scores``: scratch, (8, SPLIT) f32; ``partial`` (group,
    partial_stride) receives each head's maximum, sum of weights and weighted sum of values.
    """
    head_dim, capacity = cache.head_dim, cache.capacity
    group = cache.num_heads // cache.num_kv_heads
    stride, count = partial_stride(cache), stop - start
    padded = (count + 15) // 16 * 16
    keys = cache.k + (kv_head * (capacity // 16) + start // 16) * head_dim * 64
    head = 0
    while head < group:
        left = group - head
        heads = 8 if left >= 8 else (4 if left >= 4 else (2 if left >= 2 else 1))
        x = query + head * head_dim * 4
        for block in range(padded // 16):
            line = keys + block * head_dim * 64
            run_tile(F32, heads, line, 0, 0, 0, 1, head_dim, x, head_dim * 4, scores + block * 64, SPLIT * 4)
        for index in range(heads):
            _softmax(scores + index * SPLIT * 4, count, partial + (head + index) * stride)
        for tile in range(head_dim // 16):
            values = cache.v + ((kv_head * (head_dim // 16) + tile) * capacity + start) * 64
            out = partial + head * stride + PARTIAL_HEADER + tile * 64
            run_tile(F32, heads, values, 0, 0, 0, 1, padded, scores, SPLIT * 4, out, stride)
        head += heads


@kernel
def merge(total, partial, head_dim):
    """Folds one head's partial result into ``total``: both as attend_split leaves them."""
    top_total, top_partial = simd.peek_f32(total), simd.peek_f32(partial)
    top = max(top_total, top_partial)
    keep = exponential(simd.splat(top_total - top))
    take = exponential(simd.splat(top_partial - top))
    weights = simd.multiply(simd.splat(simd.peek_f32(total + 4)), keep)
    weights = simd.fma(simd.splat(simd.peek_f32(partial + 4)), take, weights)
    simd.poke_f32(total, top)
    simd.poke_f32(total + 4, simd.max_lanes(weights))
    for offset in range(PARTIAL_HEADER, PARTIAL_HEADER + head_dim * 4, 64):
        value = simd.multiply(simd.load_f32(total + offset), keep)
        simd.store_f32(total + offset, simd.fma(simd.load_f32(partial + offset), take, value))


@kernel
def normalise(total, out, head_dim):
    """``out`` (head_dim) f32 = weighted sum of values / sum of weights."""
    weights = simd.splat(simd.peek_f32(total + 4))
    for offset in range(0, head_dim * 4, 64):
        simd.store_f32(out + offset, simd.divide(simd.load_f32(total + PARTIAL_HEADER + offset), weights))
