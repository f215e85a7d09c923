"""Queries, keys and values of the tokens of a pass: norm, RoPE, rounding; one head of one token by one warp.

Lane i of a warp holds the elements i, i + 32, … of a head. A *fragment* is the operand A of a tensor-core product of 16
query rows, stored in shared memory so that each lane loads its four words at once (128 bits). Rows are query heads of
tokens; the order of the elements within a fragment is that in which a lane loads keys, 16 bytes at a time.
"""

from __future__ import annotations

import numpy as np

from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.device_functions import hadamard_32, warp_max, warp_sum
from qwchat.cuda.kernels.toolchain import A, F, I, U, device

_LOG2_E = np.float32(1.4426950408889634)
FRAGMENT_BYTES = 512
"""Bytes of one operand A: four words in each of 32 lanes."""


@device
def norm_factor(x, weight, head_dim, lane, epsilon):
    """Return 1 / sqrt(mean square + epsilon) of a head at address `x`, or 1 without a `weight` (address 0)."""
    if weight == A(0):
        return F(1)
    squares = F(0)
    for column in range(0, head_dim, 32):
        value = p.load1f(x + A(4) * A(U(column) + lane))
        squares = p.fma(value, value, squares)
    mean = p.div(warp_sum(squares), F(head_dim))
    return p.div(F(1), p.sqrt(mean + epsilon))


@device
def rotated_pair(x, weight, factor, cos, sin, column, head_dim, lane):
    """Return the elements `column` + lane and half a head further after RMSNorm and RoPE.

    Args:
        x: address of the head, (head_dim) f32.
        weight: address of the norm's weights, (head_dim) f32, or 0.
        factor: `norm_factor`.
        cos: address of the position's cosines, (head_dim/2) f32.
        sin: address of the position's sines, (head_dim/2) f32.
        column: a multiple of 32 below head_dim/2.
        head_dim: 64 or 128.
        lane: u32.
    """
    first = A(4) * A(U(column) + lane)
    second = first + A(2 * head_dim)
    low, high = p.load1f(x + first), p.load1f(x + second)
    if weight != A(0):
        low = p.load1f(weight + first) * (low * factor)
        high = p.load1f(weight + second) * (high * factor)
    c, s = p.load1f(cos + first), p.load1f(sin + first)
    return low * c - high * s, high * c + low * s


@device
def cache_codes(value):
    """Round 32 values, one in each lane, to i8 in steps of an f16 scale, as the CPU's 8-bit cache does.

    Returns:
        The lane's code i32 and, in all lanes, the scale as the bits of a half (u32); NaN if a value is not finite.
    """
    poison = warp_sum(value * F(0))
    half = p.half_of(p.div(warp_max(p.abs_f(value)), F(127)) + poison)
    scale = p.float_of_half(half)
    inverse = p.div(F(1), scale) if scale > F(0) else F(0)
    code = p.min_i(p.max_i(p.round_i(value * inverse), I(-127)), I(127))
    return code, half


@device
def finite_half(value):
    """Return the bits of `value` as a half; NaN instead of infinity, so that an overflow is reported and not hidden."""
    rounded = p.float_of_half(p.half_of(value))
    return p.half_of(rounded + rounded * F(0))


@device
def query_q8(x, weight, cos, sin, epsilon, scale, row, lane, fragments, steps, head_dim):
    """Prepare one query for an 8-bit cache: norm, RoPE, `scale`, Hadamard transform, rounding.

    Keys of a position are loaded 16 bytes a lane: four lanes hold 64 elements, that is two groups of 32. Since each
    group has a scale of its own, a product takes one group, and its operand is zero in the lanes of the other one.

    Args:
        x: address of the query, (head_dim) f32.
        weight: as in `rotated_pair`.
        cos: as in `rotated_pair`.
        sin: as in `rotated_pair`.
        epsilon: of the norm.
        scale: 1 / sqrt(head_dim).
        row: query row of the tile, 0 to 15 (u32).
        lane: u32.
        fragments: shared address of (head_dim/32, 2) fragments, zeroed before.
        steps: shared address of (16, head_dim/32) f32, written: scale · log2(e) of each group.
        head_dim: 64 or 128.
    """
    factor = norm_factor(x, weight, head_dim, lane, epsilon)
    for column in range(0, head_dim // 2, 32):
        low, high = rotated_pair(x, weight, factor, cos, sin, column, head_dim, lane)
        _store_query_q8(low * scale, U(column) >> U(5), row, lane, fragments, steps, head_dim)
        _store_query_q8(high * scale, U(column + head_dim // 2) >> U(5), row, lane, fragments, steps, head_dim)


@device
def _store_query_q8(value, block, row, lane, fragments, steps, head_dim):
    code, half = cache_codes(hadamard_32(value, lane) * F(1 / 32))
    if lane == U(0):
        at = U(row * U(head_dim // 32) + block) * U(4)
        p.shared_store1f(U(steps + at), p.float_of_half(half) * _LOG2_E)
    place = U(U(block & U(1)) * U(32) + lane)  # within 64 elements: chunks of 16, one for each of four lanes
    part = U((place >> U(3)) & U(1))
    word = U((row >> U(3)) + ((place >> U(1)) & U(2)))
    slot = U(U(row & U(7)) * U(4) + (place >> U(4)))
    at = U(U(block * U(2) + part) * U(FRAGMENT_BYTES) + slot * U(16) + word * U(4) + (place & U(3)))
    p.shared_store_u8(U(fragments + at), U(code))


@device
def query_f16(x, weight, cos, sin, epsilon, scale, row, lane, fragments, steps, head_dim):
    """Prepare one query for an f16 cache: norm, RoPE, `scale`, then the sum of two halves for each element.

    The row is divided by a power of two so that its largest element is 1 to 2; the second half holds what the first
    one rounds off. Arguments are as for `query_q8`, with (head_dim/32, 2, 2) fragments: 32 elements, the first or
    second four of each lane's eight, first or second half; `steps` is (16) f32: the power of two · log2(e).
    """
    factor = norm_factor(x, weight, head_dim, lane, epsilon)
    largest, poison = F(0), F(0)
    for column in range(0, head_dim // 2, 32):
        low, high = rotated_pair(x, weight, factor, cos, sin, column, head_dim, lane)
        low, high = low * scale, high * scale
        largest = p.max_f(largest, p.max_f(p.abs_f(low), p.abs_f(high)))
        poison = poison + (low * F(0) + high * F(0))
    exponent = p.min_u(U(p.bits_of(warp_max(largest)) & U(0x7F800000)), U(253 << 23))
    inverse = p.float_of_bits(U(U(254 << 23) - exponent))
    poison = warp_sum(poison)
    if lane == U(0):
        p.shared_store1f(U(steps + row * U(4)), p.float_of_bits(exponent) * _LOG2_E + poison)
    for column in range(0, head_dim // 2, 32):
        low, high = rotated_pair(x, weight, factor, cos, sin, column, head_dim, lane)
        _store_query_f16(low * scale * inverse, U(column) >> U(5), row, lane, fragments)
        _store_query_f16(high * scale * inverse, U(column + head_dim // 2) >> U(5), row, lane, fragments)


@device
def _store_query_f16(value, block, row, lane, fragments):
    first = p.half_of(value)
    second = p.half_of(value - p.float_of_half(first))
    part = U((lane >> U(2)) & U(1))
    word = U((row >> U(3)) + (lane & U(2)))
    slot = U(U(row & U(7)) * U(4) + (lane >> U(3)))
    at = U(U(block * U(2) + part) * U(2 * FRAGMENT_BYTES) + slot * U(16) + word * U(4) + U(lane & U(1)) * U(2))
    p.shared_store_u16(U(fragments + at), first)
    p.shared_store_u16(U(fragments + at + U(FRAGMENT_BYTES)), second)


@device
def store_key_q8(x, weight, cos, sin, offset, epsilon, lane, cache, own, head_dim):
    """Write a key for an 8-bit cache: norm, RoPE, minus `offset`, Hadamard transform, rounding.

    Args:
        x: address of the key, (head_dim) f32.
        weight: as in `rotated_pair`.
        cos: as in `rotated_pair`.
        sin: as in `rotated_pair`.
        offset: address of what is subtracted, (head_dim) f32, or 0.
        epsilon: of the norm.
        lane: u32.
        cache: addresses of the position's codes, (head_dim) i8, and scales, (head_dim/32) f16; 0 to leave it alone.
        own: addresses of the same in the block's own scratch.
        head_dim: 64 or 128.
    """
    factor = norm_factor(x, weight, head_dim, lane, epsilon)
    for column in range(0, head_dim // 2, 32):
        low, high = rotated_pair(x, weight, factor, cos, sin, column, head_dim, lane)
        place = U(column) + lane
        _store_q8(_minus(low, offset, place), place, lane, cache, own)
        place = U(column + head_dim // 2) + lane
        _store_q8(_minus(high, offset, place), place, lane, cache, own)


@device
def store_value_q8(x, lane, cache, own, head_dim):
    """Write a value for an 8-bit cache: Hadamard transform, rounding. Arguments are as for `store_key_q8`."""
    for column in range(0, head_dim, 32):
        place = U(column) + lane
        _store_q8(p.load1f(x + A(4) * A(place)), place, lane, cache, own)


@device
def _minus(value, offset, place):
    return value - p.load1f(offset + A(4) * A(place)) if offset != A(0) else value


@device
def _store_q8(value, place, lane, cache, own):
    code, half = cache_codes(hadamard_32(value, lane))
    scale_at = A(2) * A(place >> U(5))
    p.store_u8(own[0] + A(place), U(code))
    if lane == U(0):
        p.store_u16(own[1] + scale_at, half)
    if cache[0] != A(0):
        p.store_u8(cache[0] + A(place), U(code))
        if lane == U(0):
            p.store_u16(cache[1] + scale_at, half)


@device
def store_key_f16(x, weight, cos, sin, offset, epsilon, lane, cache, own, head_dim):
    """Write a key for an f16 cache: norm, RoPE, minus `offset`.

    The first address of `cache` and of `own` is that of the position's key, (head_dim) f16; the second one is unused.
    The rest is as for `store_key_q8`.
    """
    factor = norm_factor(x, weight, head_dim, lane, epsilon)
    for column in range(0, head_dim // 2, 32):
        low, high = rotated_pair(x, weight, factor, cos, sin, column, head_dim, lane)
        place = U(column) + lane
        _store_f16(_minus(low, offset, place), place, cache, own)
        place = U(column + head_dim // 2) + lane
        _store_f16(_minus(high, offset, place), place, cache, own)


@device
def store_value_f16(x, lane, cache, own, head_dim):
    """Write a value for an f16 cache. Arguments are as for `store_key_f16`."""
    for column in range(0, head_dim, 32):
        place = U(column) + lane
        _store_f16(p.load1f(x + A(4) * A(place)), place, cache, own)


@device
def _store_f16(value, place, cache, own):
    half = finite_half(value)
    p.store_u16(own[0] + A(2) * A(place), half)
    if cache[0] != A(0):
        p.store_u16(cache[0] + A(2) * A(place), half)
