"""Grouped-query attention over a KV cache.

The kernels work on rows: a row is one query head of one token, and the rows of a KV head are those of its whole group,
of one token or of many. Each key and value that is loaded serves all of them.

Positions are processed in splits of SPLIT_POSITIONS, each with a softmax of its own; the results of the splits are
merged in order (Milakov and Gimelshein 2018; splits over positions as in Flash-Decoding, Dao et al. 2023). Splits begin
at fixed positions, so that a token's result depends neither on the tokens in its chunk nor on the number of threads.

The cache holds f32, or 8 bits with an f16 scale for each 32 dimensions of a position. For 8 bits, queries, keys and
values pass a Walsh-Hadamard transform before they are rounded (see `hadamard`), and results pass it again.
`attention_tiles` has the layouts.
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
_SCORED_POSITIONS = 64  # positions per call of score_rows, between prefetches of their values
_INT16_MAX = np.float32(32767)
_FLIP_TOP_BITS = np.int32(-0x7F7F7F80)  # flips the top bit of four bytes: signed codes become unsigned

_round_f16 = simd.operation(types.float32, (types.float32,), lambda b, x: b.fpext(b.fptrunc(x, simd.F16), simd.F32))
_poke_f16 = simd.operation(
    types.void, (types.int64, types.float32), lambda b, a, x: simd.emit_store(b, a, b.fptrunc(x, simd.F16), 2)
)
_peek_i32 = simd.operation(types.int32, (types.int64,), lambda b, a: simd.emit_load(b, a, simd.I32, 4))
_poke_i8 = simd.operation(types.void, (types.int64, types.int8), simd.emit_store)


@kernel
def rotate(x, cos, sin, out, head_dim, scale):
    """Apply RoPE (Su et al. 2021) to one head, and multiply it by `scale`.

    Dimension i is paired with dimension i + head_dim/2, as in Hugging Face's rotate_half.

    Args:
        x: (head_dim) f32.
        cos: (head_dim/2) f32, cosines of the position's angles.
        sin: (head_dim/2) f32, sines of the position's angles.
        out: (head_dim) f32; may be `x`.
        head_dim: a multiple of 32.
        scale: f32.
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
    """Round 32 values f32 to i8 in steps of an f16 scale, which is returned; NaN if a value is not finite.

    `x`: (32) f32. `x8`: (32) i8, written.
    """
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
    """Quantise one rotated query for an 8-bit cache; do nothing for an f32 cache.

    Args:
        queries: a QUERIES record; row `row` of `kv_head` in `x` is transformed in place and written to `x8`, `scales`
            and `zero_corrections`.
        kind: kind of the cache.
        kv_head: KV head that the query belongs to.
        row: row of that head.
        head_dim: a multiple of 32.
    """
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
    """Write one head's key at one position to the cache.

    Args:
        cache: a CACHE record.
        kv_head: number of the head.
        position: where the token stands.
        key: (head_dim) f32 after RoPE; overwritten for an 8-bit cache.
        scratch: 32 bytes.
    """
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
    """Write one head's value at one position to the cache.

    Args:
        cache: a CACHE record.
        kv_head: number of the head.
        position: where the token stands.
        value: (head_dim) f32; overwritten for an 8-bit cache.
        scratch: 32 bytes.
    """
    tiles = cache.head_dim // 16
    if cache.kind != KV_Q8:
        for tile in range(tiles):
            target = cache.v + ((kv_head * tiles + tile) * cache.capacity + position) * 64
            simd.store_f32(target, simd.load_f32(value + tile * 64))
        return
    # Four positions are stored as 0, 2, 1, 3: the even bytes of a word are positions 0 and 1, the odd bytes 2 and 3.
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
    """Return the bytes of one row's partial result: the header and head_dim sums."""
    return PARTIAL_HEADER_BYTES + cache.head_dim * 4


@inlined
def _softmax(scores, count, end, partial):
    """Turn scores into weights exp(score - maximum), in place; write the maximum and the sum of the weights.

    Args:
        scores: a row of scores f32.
        count: number of positions that the row sees; the weights of all others are 0.
        end: bytes of the row, a multiple of 64.
        partial: header of the row's partial result.
    """
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
    """Scale the f16 scales of `count` values so that the largest becomes 32767; return the size of a unit.

    A weight times its value's scale is rounded to 16 bits, not 8, since a long tail of small weights must not vanish
    beside a large one. The sum over a split of products with 8-bit codes stays below 2**31: 32767 * 127 * 512.

    Args:
        scales: f16, one for each position.
        count: positions that the row sees; the units of all others are 0.
        units: f32, written.
        end: bytes of a row of `units`, a multiple of 64.
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
    """Multiply a row of weights f32 (at most 1) by the units of `_scale_units`, and round to i16."""
    for offset in range(0, end, 64):
        product = simd.multiply(simd.load_f32(weights + offset), simd.load_f32(units + offset))
        simd.store_i16(out + offset // 2, simd.round_to_i32(product))


@kernel
def _prefetch_values(values, column_bytes, head_dim, size):
    """Prefetch `size` bytes of each column of 16 dimensions: the values of some consecutive positions."""
    for column in range(head_dim // 16):
        for line in range(0, size, 64):
            simd.prefetch(values + column * column_bytes + line)


@kernel
def attend_rows(cache, queries, kv_head, row, rows, position, start, stop, prefetch, scratch, partials):
    """Attend from some rows of a KV head to the positions `start` to `stop - 1` of one split.

    Row r belongs to token r // group of the chunk, and sees the positions up to its own. The result of a row is its
    largest score (-inf if it sees none of these positions), the sum of its weights, and the weighted sum of values.

    Args:
        cache: a CACHE record.
        queries: a QUERIES record.
        kv_head: number of the KV head.
        row: first row.
        rows: number of rows, at most ATTENTION_ROWS.
        position: position of the chunk's first token.
        start: first position of the split.
        stop: one past the last position.
        prefetch: set for the first rows that see these positions. Their values are then prefetched while the scores are
            computed, and the keys of the next split while the values are summed.
        scratch: ATTENTION_SCRATCH_BYTES of this thread.
        partials: (ATTENTION_ROWS, partial_stride) bytes, written.
    """
    head_dim, capacity, kind = cache.head_dim, cache.capacity, cache.kind
    group, blocks = cache.num_heads // cache.num_kv_heads, head_dim // 32
    stride = partial_stride(cache)
    padded = (stop - start + 31) // 32 * 32
    tile = kv_head * (capacity // 16) + start // 16
    index = kv_head * queries.row_capacity + row
    size = 1 if kind == KV_Q8 else 4  # bytes of a key's or value's element
    keys = cache.k + tile * head_dim * 16 * size
    column_bytes = capacity * 16 * size
    values = cache.v + (kv_head * blocks * 2 * capacity + start) * 16 * size
    codes = scratch + ATTENTION_ROWS * SPLIT_POSITIONS * 4  # i16; after them the scales of the rows, then units
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
    """Merge one row's partial result into `total`; both are as `attend_rows` writes them.

    A partial result without any position changes nothing; `total` covers at least one.
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
    """Compute `out` (head_dim) f32 = weighted sum of values / sum of weights, from a merged result."""
    weights = simd.splat(simd.peek_f32(total + 4))
    for offset in range(0, cache.head_dim * 4, 64):
        simd.store_f32(out + offset, simd.divide(simd.load_f32(total + PARTIAL_HEADER_BYTES + offset), weights))
    if cache.kind == KV_Q8:
        hadamard(out, cache.head_dim, _INVERSE)
