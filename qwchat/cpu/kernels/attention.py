"""Grouped-query attention over a KV cache, tiled over rows: the query heads of a KV head, of one token or of many.

Positions are worked on in splits of SPLIT_POSITIONS with one softmax each, merged in order (Milakov and Gimelshein,
2018; split over positions as in Flash-Decoding).  Splits start at fixed positions, so a token's result does not depend
on which tokens share its chunk nor on the number of threads.

The cache holds f32, or 8 bits in groups of 32 dimensions of one position with an f16 scale; queries, keys and values
are transformed before rounding (see hadamard), and results back.  The layouts stand in
:mod:`qwchat.cpu.kernels.attention_tiles`.
"""

from __future__ import annotations

import numpy as np

from quant.native.backend import types
from qwchat.cpu.kernels import simd
from qwchat.cpu.kernels.attention_tiles import score_rows, weigh_rows
from qwchat.cpu.kernels.hadamard import hadamard
from qwchat.cpu.kernels.jit import inlined, kernel
from qwchat.cpu.kernels.records import ATTENTION_ROWS, KV_Q8, PARTIAL_HEADER_BYTES, SPLIT_POSITIONS
from qwchat.cpu.kernels.row_kernels import exponential, exponential_below_zero

_NEGATIVE_INFINITY = np.float32(-np.inf)
_INT8_MAX, _ZERO, _ONE, _INVERSE = np.float32(127), np.float32(0), np.float32(1), np.float32(1 / 32)
_SCORED_POSITIONS = 64  # positions scored in one go, between requests for their values
_INT16_MAX = np.float32(32767)
_FLIP_TOP_BITS = np.int32(-0x7F7F7F80)  # flips the top bit of four bytes: signed codes to unsigned ones

_round_f16 = simd.operation(types.float32, (types.float32,), lambda b, x: b.fpext(b.fptrunc(x, simd.F16), simd.F32))
_poke_f16 = simd.operation(
    types.void, (types.int64, types.float32), lambda b, a, x: simd.emit_store(b, a, b.fptrunc(x, simd.F16), 2)
)
_peek_i32 = simd.operation(types.int32, (types.int64,), lambda b, a: simd.emit_load(b, a, simd.I32, 4))
_poke_i8 = simd.operation(types.void, (types.int64, types.int8), simd.emit_store)


@kernel
def rotate(x, cos, sin, out, head_dim, scale):
    """RoPE on one head, half-split as in Hugging Face's rotate_half; multiplied by `scale` (f32).

    `x`, `out` (head_dim) f32, possibly the same; `cos`, `sin` (head_dim/2) f32: the angles of its position.
    """
    half = head_dim * 2
    factor = simd.splat(scale)
    for column in range(0, half, 64):
        c, s = simd.load_f32(cos + column), simd.load_f32(sin + column)
        low, high = simd.load_f32(x + column), simd.load_f32(x + half + column)
        rotated_low = simd.subtract(simd.multiply(low, c), simd.multiply(high, s))
        rotated_high = simd.add(simd.multiply(high, c), simd.multiply(low, s))
        simd.store_f32(out + column, simd.multiply(rotated_low, factor))
        simd.store_f32(out + half + column, simd.multiply(rotated_high, factor))


@kernel
def _quantise_32(x, x8):
    """Thirty-two f32 -> i8 in steps of the f16 scale that is returned; NaN where a value is not finite."""
    low, high = simd.load_f32(x), simd.load_f32(x + 64)
    largest = simd.max_lanes(simd.maximum(simd.absolute(low), simd.absolute(high)))
    poison = simd.sum_lanes(simd.multiply(simd.add(low, high), simd.splat(_ZERO)))
    scale = _round_f16(largest / _INT8_MAX + poison)
    inverse = simd.splat(_ONE / scale if scale > _ZERO else _ZERO)
    simd.store_i8(x8, simd.round_to_i32(simd.multiply(low, inverse)))
    simd.store_i8(x8 + 16, simd.round_to_i32(simd.multiply(high, inverse)))
    return scale


@kernel
def store_query(queries, kind, kv_head, row, head_dim):
    """Quantises a rotated query in place of its row, where the cache has 8 bits."""
    if kind != KV_Q8:
        return
    blocks = head_dim // 32
    index = kv_head * queries.row_capacity + row
    hadamard(queries.x + index * head_dim * 4, head_dim, _INVERSE)
    for block in range(blocks):
        x8 = queries.x8 + index * head_dim + block * 32
        item = (index * blocks + block) * 4
        scale = _quantise_32(queries.x + (index * head_dim + block * 32) * 4, x8)
        total = np.int32(0)
        for column in range(32):
            total += simd.peek_i8(x8 + column)
        simd.poke_f32(queries.scales + item, scale)
        simd.poke_i32(queries.zero_corrections + item, np.int32(-128) * total)


@kernel
def store_key(cache, kv_head, position, key, scratch):
    """Writes one head's rotated key (head_dim) f32 into the cache.  `scratch`: 32 bytes; `key` may be changed."""
    head_dim = cache.head_dim
    tile = kv_head * (cache.capacity // 16) + position // 16
    if cache.kind != KV_Q8:
        lane = cache.k + tile * head_dim * 64 + (position % 16) * 4
        for index in range(head_dim):
            simd.poke_f32(lane + index * 64, simd.peek_f32(key + index * 4))
        return
    for column in range(0, head_dim * 4, 64):
        offset = simd.load_f32(cache.k_offset + kv_head * head_dim * 4 + column)
        simd.store_f32(key + column, simd.subtract(simd.load_f32(key + column), offset))
    hadamard(key, head_dim, _ONE)
    lane = cache.k + tile * head_dim * 16 + (position % 16) * 4
    for block in range(head_dim // 32):
        scale = _quantise_32(key + block * 128, scratch)
        for word in range(8):
            codes = np.int32(_peek_i32(scratch + word * 4) ^ _FLIP_TOP_BITS)
            simd.poke_i32(lane + (block * 8 + word) * 64, codes)
        _poke_f16(cache.k_scales + ((tile * (head_dim // 32) + block) * 16 + position % 16) * 2, scale)


@kernel
def store_value(cache, kv_head, position, value, scratch):
    """Writes one head's value (head_dim) f32 into the cache.  `scratch`: 32 bytes; `value` may be changed."""
    tiles = cache.head_dim // 16
    if cache.kind != KV_Q8:
        for tile in range(tiles):
            target = cache.v + ((kv_head * tiles + tile) * cache.capacity + position) * 64
            simd.store_f32(target, simd.load_f32(value + tile * 64))
        return
    # Four positions lie as 0, 2, 1, 3: the even bytes of the words are 0 and 1, the odd ones 2 and 3.
    hadamard(value, cache.head_dim, _ONE)
    within = position % 4 // 2 + position % 2 * 2
    for block in range(tiles // 2):
        scale = _quantise_32(value + block * 128, scratch)
        for index in range(32):
            tile = kv_head * tiles + block * 2 + index // 16
            target = cache.v + (tile * cache.capacity + position // 4 * 4) * 16 + (index % 16) * 4
            _poke_i8(target + within, simd.peek_i8(scratch + index))
        _poke_f16(cache.v_scales + ((kv_head * (tiles // 2) + block) * cache.capacity + position) * 2, scale)


@inlined
def partial_stride(cache):
    """Bytes of one row's partial result: header and head_dim sums."""
    return PARTIAL_HEADER_BYTES + cache.head_dim * 4


@inlined
def _softmax(scores, count, end, partial):
    """Scores f32 -> weights in place, zero from `count` on; maximum and sum noted.  `end`: bytes of the row."""
    seen = max(count, 0)
    full = seen // 16 * 64
    largest = simd.splat(_NEGATIVE_INFINITY)
    for offset in range(0, full, 64):
        largest = simd.maximum(largest, simd.load_f32(scores + offset))
    if full < end:
        largest = simd.maximum(
            largest, simd.keep_lanes(simd.load_f32(scores + full), seen - full // 4, _NEGATIVE_INFINITY)
        )
    top = simd.max_lanes(largest)
    shift, total = simd.splat(top), simd.splat(_ZERO)
    for offset in range(0, full, 64):
        weight = exponential_below_zero(simd.subtract(simd.load_f32(scores + offset), shift))
        simd.store_f32(scores + offset, weight)
        total = simd.add(total, weight)
    for offset in range(full, end, 64):
        weight = exponential_below_zero(simd.subtract(simd.load_f32(scores + offset), shift))
        weight = simd.keep_lanes(weight, seen - offset // 4, _ZERO)
        simd.store_f32(scores + offset, weight)
        total = simd.add(total, weight)
    simd.poke_f32(partial, top)
    simd.poke_f32(partial + 4, simd.sum_lanes(total))


@kernel
def _scale_units(scales, count, units, end):
    """f16 scales of values -> f32 `units`, the largest of the first `count` being 32767; returns a unit's size.

    Sixteen bits for a weight, since a long tail of small ones must not vanish beside a large one.  A sum over a split
    of products with 8-bit codes stays below 2**31: 32767 * 127 * 512.  `end`: bytes of a row of `units`.
    """
    top = total = simd.splat(_ZERO)
    for offset in range(0, end, 64):
        seen = simd.keep_lanes(simd.load_f16(scales + offset // 2), max(count, 0) - offset // 4, _ZERO)
        simd.store_f32(units + offset, seen)
        top, total = simd.maximum(top, seen), simd.add(total, seen)
    largest = simd.max_lanes(top)
    poison = simd.sum_lanes(total) * _ZERO
    factor = simd.splat(_INT16_MAX / largest if largest > _ZERO else _ZERO)
    for offset in range(0, end, 64):
        simd.store_f32(units + offset, simd.multiply(simd.load_f32(units + offset), factor))
    return largest / _INT16_MAX + poison


@kernel
def _weight_codes(weights, units, out, end):
    """One row of weights f32, at most 1, times :func:`_scale_units` -> i16."""
    for offset in range(0, end, 64):
        product = simd.multiply(simd.load_f32(weights + offset), simd.load_f32(units + offset))
        simd.store_i16(out + offset // 2, simd.round_to_i32(product))


@kernel
def _prefetch_values(values, column_bytes, head_dim, size):
    """Asks for `size` bytes of each column of values: those of some positions that follow each other."""
    for column in range(head_dim // 16):
        for line in range(0, size, 64):
            simd.prefetch(values + column * column_bytes + line)


@kernel
def attend_rows(cache, queries, kv_head, row, rows, position, start, stop, prefetch, scratch, partials):
    """`rows` rows of `kv_head` from `row` on (at most ATTENTION_ROWS), to the positions `start .. stop` of one split.

    Row r belongs to token r // group of the chunk that begins at `position` and sees the positions up to its own.
    `partials` has room for ATTENTION_ROWS times partial_stride and receives each row's maximum (-inf where it sees none
    of these positions), sum of weights and weighted sum of values.  `prefetch`: the first rows to see these positions,
    whose values are then fetched from memory while the scores are computed, and after them the keys of the next split.
    `scratch`: ATTENTION_SCRATCH_BYTES.
    """
    head_dim, capacity, kind = cache.head_dim, cache.capacity, cache.kind
    group, blocks = cache.num_heads // cache.num_kv_heads, head_dim // 32
    stride = partial_stride(cache)
    padded = (stop - start + 31) // 32 * 32
    tile = kv_head * (capacity // 16) + start // 16
    index = kv_head * queries.row_capacity + row
    size = 1 if kind == KV_Q8 else 4  # bytes of an element of the cache
    keys = cache.k + tile * head_dim * 16 * size
    column_bytes = capacity * 16 * size
    values = cache.v + (kv_head * blocks * 2 * capacity + start) * 16 * size
    codes = scratch + ATTENTION_ROWS * SPLIT_POSITIONS * 4  # then scales of the rows, then one row of f32
    for done in range(0, padded, _SCORED_POSITIONS):
        if prefetch:
            _prefetch_values(values + done * 16 * size, column_bytes, head_dim, _SCORED_POSITIONS * 16 * size)
        score_rows(
            kind,
            keys + done * head_dim * size,
            cache.k_scales + (tile + done // 16) * blocks * 32,
            head_dim,
            min(_SCORED_POSITIONS, padded - done),
            queries.x + index * head_dim * 4,
            queries.x8 + index * head_dim,
            queries.scales + index * blocks * 4,
            queries.zero_corrections + index * blocks * 4,
            scratch + done * 4,
        )
    for r in range(rows):
        count = min(stop, position + (row + r) // group + 1) - start
        _softmax(scratch + r * SPLIT_POSITIONS * 4, count, padded * 4, partials + r * stride)
    for block in range(blocks):
        weights, weight_scales = scratch, codes + ATTENTION_ROWS * SPLIT_POSITIONS * 2
        if kind == KV_Q8:
            weights = codes
            scales = cache.v_scales + ((kv_head * blocks + block) * capacity + start) * 2
            units, step, seen = weight_scales + 64, _ZERO, -1
            for r in range(rows):
                count = max(0, min(stop, position + (row + r) // group + 1) - start)
                if count != seen:
                    step, seen = _scale_units(scales, count, units, padded * 4), count
                _weight_codes(scratch + r * SPLIT_POSITIONS * 4, units, codes + r * SPLIT_POSITIONS * 2, padded * 4)
                simd.poke_f32(weight_scales + r * 4, step)
        out = partials + PARTIAL_HEADER_BYTES + block * 128
        prefetch_address = (
            keys + block * SPLIT_POSITIONS * 32 * size + (SPLIT_POSITIONS * head_dim * size if prefetch else 0)
        )
        column = values + block * 2 * column_bytes
        weigh_rows(kind, column, column_bytes, padded, weights, weight_scales, prefetch_address, out, stride)


@kernel
def merge(total, partial, head_dim):
    """Folds one row's partial result into `total`: both as attend_rows leaves them.

    A partial result over no position changes nothing; `total` is over at least one.
    """
    top_total, top_partial = simd.peek_f32(total), simd.peek_f32(partial)
    top = max(top_total, top_partial)
    total_factor = exponential(simd.splat(top_total - top))
    partial_factor = exponential(simd.splat(top_partial - top))
    weights = simd.multiply(simd.splat(simd.peek_f32(total + 4)), total_factor)
    weights = simd.fma(simd.splat(simd.peek_f32(partial + 4)), partial_factor, weights)
    simd.poke_f32(total, top)
    simd.poke_f32(total + 4, simd.max_lanes(weights))
    for offset in range(PARTIAL_HEADER_BYTES, PARTIAL_HEADER_BYTES + head_dim * 4, 64):
        value = simd.multiply(simd.load_f32(total + offset), total_factor)
        simd.store_f32(total + offset, simd.fma(simd.load_f32(partial + offset), partial_factor, value))


@kernel
def normalise(cache, total, out):
    """`out` (head_dim) f32 = weighted sum of values / sum of weights."""
    weights = simd.splat(simd.peek_f32(total + 4))
    for offset in range(0, cache.head_dim * 4, 64):
        simd.store_f32(out + offset, simd.divide(simd.load_f32(total + PARTIAL_HEADER_BYTES + offset), weights))
    if cache.kind == KV_Q8:
        hadamard(out, cache.head_dim, _INVERSE)
