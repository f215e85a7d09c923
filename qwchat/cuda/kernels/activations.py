"""Activations of the matrix-vector kernels: RMSNorm and quantisation into shared memory, and reads of groups of 32.

Quantised activations are codes (i8) and records {f32 scale, i32 sum of the codes} per group of 32 columns:

    largest = max |x|                       of the group
    code    = rint(x * min(127 / largest, largest float))      0 in a group of zeros
    scale   = largest / 127                 NaN if a value of the group is not finite, so that it reaches the output

All operations are float32, rounded one by one. RMSNorm of a row is

    total  = sum of x²         thread t of 256 adds columns 4t to 4t+3, then 4(t+256), …, by fused multiply-adds; then
                               lanes t and t^16, t^8, t^4, t^2, t^1; then warps 0 to 7
    factor = 1 / sqrt(total / columns + epsilon)               NaN if the total is not finite
    y      = weight * (x * factor)

In shared memory a row of codes takes `32 * (groups | 1)` bytes and a row of records `8 * (groups | 1)`: an odd number
of groups, so that rows start in different banks. `norm_bytes` is the size of both.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.toolchain import A, F, I, U, cuda, device

THREADS = 256
WARPS = 8
_GROUP = 32
_INFINITY = 0x7F800000
_LARGEST, _NAN = np.float32(np.finfo(np.float32).max), np.float32(np.nan)
_ONES = 0x01010101


@device
def padded(groups):
    """Return the groups that a row takes in shared memory."""
    return I(groups | 1)


@device
def square_sums(x, rows, columns, sums):
    """Add the squares of each row within each warp.

    Args:
        x: address of the first row, f32.
        rows: number of rows.
        columns: a multiple of 32.
        sums: shared address of (rows, 8) f32, the sums of the warps.
    """
    thread, row = I(cuda.threadIdx.x), I(0)
    while row < rows:
        at = x + A(4) * A(row) * A(columns)
        total = F(0)
        quad = thread
        while quad < I(columns >> 2):
            a, b, c, d = p.read4f(at + A(16) * A(quad))
            total = p.fma(d, d, p.fma(c, c, p.fma(b, b, p.fma(a, a, total))))
            quad = I(quad + THREADS)
        for distance in (16, 8, 4, 2, 1):
            total = F(total + p.shuffle_xor_f(total, U(distance)))
        if I(thread & 31) == 0:
            p.shared_store1f(U(sums + U(4) * U(I(row * WARPS + (thread >> 5)))), total)
        row = I(row + 1)


@device
def norm_factor(sums, row, columns, epsilon):
    """Return `1 / sqrt(mean + epsilon)` of a row; NaN if its sum of squares is not finite."""
    total = F(0)
    for warp in range(WARPS):
        total = F(total + p.shared_load1f(U(sums + U(4) * U(I(row * WARPS + warp)))))
    factor = p.div(F(1), p.sqrt(F(p.div(total, F(columns)) + epsilon)))
    return F(factor + F(total - total))


@device
def scale_and_inverse(bits):
    """Return scale and inverse scale of a group whose largest magnitude has these bits."""
    largest = p.float_of_bits(bits)
    inverse = F(0)
    if largest > F(0):
        inverse = p.min_f(p.div(F(127), largest), _LARGEST)
    scale = p.div(largest, F(127))
    if bits >= U(_INFINITY):
        scale = _NAN
    return scale, inverse


@device
def magnitude(value):
    """Return the bits of |value|, which are ordered like numbers, then infinity, then NaN."""
    return U(p.bits_of(value) & U(0x7FFFFFFF))


@device
def quantise_quad(a, b, c, d):
    """Quantise 4 columns per lane, 32 in each 8 lanes.

    Returns:
        The 4 codes of this lane, and scale and sum of the group, the same in all 8 lanes.
    """
    bits = p.max_u(p.max_u(magnitude(a), magnitude(b)), p.max_u(magnitude(c), magnitude(d)))
    for distance in (1, 2, 4):
        bits = p.max_u(bits, p.shuffle_xor(bits, U(distance)))
    scale, inverse = scale_and_inverse(bits)
    low = p.prmt(U(p.round_i(F(a * inverse))), U(p.round_i(F(b * inverse))), U(0x0040))
    high = p.prmt(U(p.round_i(F(c * inverse))), U(p.round_i(F(d * inverse))), U(0x0040))
    codes = p.prmt(low, high, U(0x5410))
    total = p.dp4a_ss(codes, U(_ONES), I(0))
    for distance in (1, 2, 4):
        total = I(total + p.shuffle_xor_i(total, U(distance)))
    return codes, scale, total


@device
def in_look_up_order(codes, lane):
    """Return this lane's 4 bytes of the 8 columns that it shares with its neighbour, in look-up order."""
    other = p.shuffle_xor(codes, U(1))
    if I(lane & 1) == 0:
        return p.prmt(codes, other, U(0x5140))
    return p.prmt(other, codes, U(0x7362))


def norm_rows(look_up: bool) -> Any:
    """Return a device function: RMSNorm of rows, quantised into shared memory.

    Args:
        look_up: whether codes are stored in look-up order, not in plain order.
    """

    @device
    def norm_rows(x, weight, epsilon, rows, columns, codes, records, sums):
        """Normalise and quantise `rows` rows at `x`; ends with a barrier.

        Args:
            x: address of the first row, f32.
            weight: address of the weights of the norm, f32.
            epsilon: added to the mean of the squares.
            rows: number of rows.
            columns: a multiple of 32.
            codes: shared address for the codes.
            records: shared address for scales and sums.
            sums: shared address of (rows, 8) f32.
        """
        square_sums(x, rows, columns, sums)
        cuda.syncthreads()
        lane, quads, stride = I(cuda.threadIdx.x & 31), I(columns >> 2), padded(I(columns >> 5))
        row = I(0)
        while row < rows:
            factor = norm_factor(sums, row, columns, epsilon)
            at = x + A(4) * A(row) * A(columns)
            first = I(cuda.threadIdx.x - lane)
            while first < quads:
                quad = I(first + lane)
                a, b, c, d = F(0), F(0), F(0), F(0)
                if quad < quads:
                    a, b, c, d = p.read4f(at + A(16) * A(quad))
                    wa, wb, wc, wd = p.load4f_cached(weight + A(16) * A(quad))
                    a, b, c, d = (
                        F(wa * F(a * factor)),
                        F(wb * F(b * factor)),
                        F(wc * F(c * factor)),
                        F(wd * F(d * factor)),
                    )
                word, scale, total = quantise_quad(a, b, c, d)
                if look_up:
                    word = in_look_up_order(word, lane)
                if quad < quads:
                    p.shared_store1(U(codes + U(I(I(row * stride) * _GROUP + 4 * quad))), word)
                    if I(lane & 7) == 0:
                        p.shared_store_scale(U(records + U(I(8 * I(row * stride + (quad >> 3))))), scale, total)
                first = I(first + THREADS)
            row = I(row + 1)
        cuda.syncthreads()

    return norm_rows


@device
def _look_up_order(a, b, c, d, e, f, g, h):
    """Return 32 codes in look-up order from 32 in plain order."""
    first, second = U(0x5140), U(0x7362)
    return (
        p.prmt(a, b, first),
        p.prmt(a, b, second),
        p.prmt(c, d, first),
        p.prmt(c, d, second),
        p.prmt(e, f, first),
        p.prmt(e, f, second),
        p.prmt(g, h, first),
        p.prmt(g, h, second),
    )


def block_reader(shared: bool, look_up: bool) -> Any:
    """Return a device function: the 8 words of 32 codes at an address.

    Args:
        shared: whether the codes are in shared memory, in the order that is needed; else in memory, in plain order.
        look_up: whether look-up order is needed.
    """
    if shared:
        return device(lambda at: p.shared_load4(at) + p.shared_load4(U(at + U(16))))
    if not look_up:
        return device(lambda at: p.read4(at) + p.read4(at + A(16)))

    @device
    def reader(at):
        a, b, c, d = p.read4(at)
        e, f, g, h = p.read4(at + A(16))
        return _look_up_order(a, b, c, d, e, f, g, h)

    return reader


def pair_reader(shared: bool, look_up: bool) -> Any:
    """Return a device function: the 2 words of 8 codes at an address; arguments as in `block_reader`."""
    if shared:
        return p.shared_load2
    if not look_up:
        return p.read2

    @device
    def reader(at):
        a, b = p.read2(at)
        return p.prmt(a, b, U(0x5140)), p.prmt(a, b, U(0x7362))

    return reader
