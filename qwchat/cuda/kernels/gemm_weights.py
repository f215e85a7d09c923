"""Weights of all formats as f16 operands of tensor cores, straight from the stored tiles.

A warp multiplies 32 rows (two tiles) by 32 columns (one group). With lane = 4 * slot + part, tile = slot / 4 and
quad = slot % 4, a lane has the rows 4 * quad to 4 * quad + 3 of its tile and the columns 8 * part to 8 * part + 7 of
the group. These are the rows `slot` and `slot + 8` of two A operands; the order of columns does not matter as long as A
and B share it. So nothing is moved between lanes.

Each format has three device functions:
    begin(parts…, tile, groups, lane) -> state, addresses of the lane and constants
    load(state, group) -> raw, registers as stored
    halves(state, raw) -> 16 words: 4 pairs for each of the 4 rows; the pairs of 8 columns are (0,4) (1,5) (2,6) (3,7)

A half is `scale * (level - zero)`: the difference is exact, the product rounded once, so a weight is off by at most
2^-12 of itself. Row scales are applied to the sums. bf16 is exact between 2^-14 and 65,504 and off by at most 2^-25
below; f32 is rounded to f16. So activations keep 11 bits, where bf16 operands would leave 8. A weight beyond 65,504
(in the linear formats `scale * (level - zero)`) becomes infinite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.toolchain import A, I, U, device

_LOW_BITS, _HIGH_BITS, _SELECT = np.uint32(0x77777777), np.uint32(0x44444444), np.uint32(0x32103210)
_NIBBLES, _SEVEN_BITS, _BYTE_SIGNS = np.uint32(0x0F0F0F0F), np.uint32(0x7F7F7F7F), np.uint32(0x80808080)
_BYTE_ONES, _MIDDLE_4 = np.uint32(0x01010101), np.uint32(0x08080808)
_K1024 = np.uint32(0x64646464)  # With a byte below it, the half 1024 + byte.
_PAIR_1024, _PAIR_1088, _PAIR_1152 = np.uint32(0x64006400), np.uint32(0x64406440), np.uint32(0x64806480)
_UPPER = np.uint32(0xFFFF0000)


@dataclass(frozen=True)
class WeightFormat:
    """How a kernel reads the weights of one format.

    Attributes:
        parts: Names of the kernel's parameters for the weights.
        letters: Their types.
        begin, load, halves: Device functions, see the module.
        row_scales: Whether the sums are multiplied by row scales.
        blocks_per_sm: Blocks of 4 warps that a multiprocessor holds at once.
    """

    parts: tuple[str, ...]
    letters: str
    begin: Callable[..., Any]
    load: Callable[..., Any]
    halves: Callable[..., Any]
    row_scales: bool = False
    blocks_per_sm: int = 3


@device
def _pairs(first, second, zero, scale):
    """Return 8 weights of a row as 4 pairs, from bytes of the columns 0, 4, 1, 5 and 2, 6, 3, 7.

    `zero` is 1024 plus the zero point, twice; `scale` the scale, twice.
    """
    return (
        p.mul_f16x2(p.sub_f16x2(p.prmt(first, _K1024, U(0x4140)), zero), scale),
        p.mul_f16x2(p.sub_f16x2(p.prmt(first, _K1024, U(0x4342)), zero), scale),
        p.mul_f16x2(p.sub_f16x2(p.prmt(second, _K1024, U(0x4140)), zero), scale),
        p.mul_f16x2(p.sub_f16x2(p.prmt(second, _K1024, U(0x4342)), zero), scale),
    )


@device
def _twice_1024(bytes_, row):
    """Return 1024 plus byte `row` of four, as a pair of equal halves."""
    return p.prmt(bytes_, _K1024, U(0x4040 + 0x0101 * row))


@device
def _begin_q4(codes, scales, table, tile, groups, lane):
    quad, part = I((lane >> 2) & 3), I(lane & 3)
    t0, t1, t2, t3 = p.load4_cached(table)
    first = A(tile) * A(groups)
    return codes + first * A(256) + A(64 * part + 16 * quad), scales + first * A(16) + A(4 * quad), t0, t1, t2, t3


@device
def _load_q4(state, group):
    q0, q1, q2, q3 = p.load4(state[0] + A(group) * A(256))
    return q0, q1, q2, q3, p.load1(state[1] + A(group) * A(16))


@device
def _look_up(state, q):
    """Return the levels of 8 codes: bytes of the columns 0, 4, 1, 5 and of 2, 6, 3, 7."""
    low = U(q & _LOW_BITS)
    choose = U(U(U(q >> U(1)) & _HIGH_BITS) | _SELECT)
    first = p.prmt(p.prmt(state[2], state[3], low), p.prmt(state[4], state[5], low), choose)
    low = U(low >> U(16))
    return first, p.prmt(p.prmt(state[2], state[3], low), p.prmt(state[4], state[5], low), U(choose >> U(16)))


@device
def _row_q4(state, q, zeros, scales, row):
    first, second = _look_up(state, q)
    scale = p.sub_f16x2(_twice_1024(scales, row), _PAIR_1088)
    return _pairs(first, second, _twice_1024(zeros, row), scale)


@device
def _halves_q4(state, raw):
    scales = U(U(U(raw[4] ^ _BYTE_SIGNS) >> U(1)) & _SEVEN_BITS)  # s + 64
    zeros = U(_BYTE_SIGNS - U(U(raw[4] & _BYTE_ONES) * U(7)))  # 128 - 7 * bit
    return (
        _row_q4(state, raw[0], zeros, scales, 0)
        + _row_q4(state, raw[1], zeros, scales, 1)
        + _row_q4(state, raw[2], zeros, scales, 2)
        + _row_q4(state, raw[3], zeros, scales, 3)
    )


@device
def _begin_q8(codes, scales, tile, groups, lane):
    quad, part = I((lane >> 2) & 3), I(lane & 3)
    first = A(tile) * A(groups)
    return codes + first * A(512) + A(128 * part + 16 * quad), scales + first * A(16) + A(4 * quad)


@device
def _load_q8(state, group):
    at = state[0] + A(group) * A(512)
    return p.load4(at) + p.load4(at + A(64)) + (p.load1(state[1] + A(group) * A(16)),)


@device
def _row_bytes(low, high, zero, scale):
    """Return 8 weights of a row as pairs, from the bytes of columns 0 to 3 and 4 to 7."""
    return _pairs(p.prmt(low, high, U(0x5140)), p.prmt(low, high, U(0x7362)), zero, scale)


@device
def _row_q8(low, high, scales, row):
    return _row_bytes(low, high, _PAIR_1152, p.sub_f16x2(_twice_1024(scales, row), _PAIR_1024))


@device
def _halves_q8(state, raw):
    return (
        _row_q8(raw[0], raw[4], raw[8], 0)
        + _row_q8(raw[1], raw[5], raw[8], 1)
        + _row_q8(raw[2], raw[6], raw[8], 2)
        + _row_q8(raw[3], raw[7], raw[8], 3)
    )


@device
def _begin_scales(scales, zeros, group_shift, tile, groups, quad):
    """Return the lane's addresses of f16 scales and of zero points (0 if none are stored)."""
    first = A(tile) * A(groups >> group_shift)
    zero_at = A(0)
    if zeros != A(0):
        zero_at = zeros + first * A(16) + A(4 * quad)
    return scales + first * A(32) + A(8 * quad), zero_at, group_shift


@device
def _load_scales(scale_at, zero_at, group_shift, group, default):
    """Return the scales of rows 0 and 1, of rows 2 and 3, and four zero points."""
    index = A(group >> group_shift)
    low, high = p.load2(scale_at + index * A(32))
    zeros = default
    if zero_at != A(0):
        zeros = p.load1(zero_at + index * A(16))
    return low, high, zeros


@device
def _begin_lin4(codes, scales, zeros, group_shift, tile, groups, lane):
    quad, part = I((lane >> 2) & 3), I(lane & 3)
    at = codes + A(tile) * A(groups) * A(256) + A(64 * part + 16 * quad)
    return (at, *_begin_scales(scales, zeros, group_shift, tile, groups, quad))


@device
def _load_lin4(state, group):
    codes = p.load4(state[0] + A(group) * A(256))
    return codes + _load_scales(state[1], state[2], state[3], group, _MIDDLE_4)


@device
def _row_lin4(q, zeros, scales, row):
    high = U(q >> U(4))
    first, second = U(p.prmt(q, high, U(0x5140)) & _NIBBLES), U(p.prmt(q, high, U(0x7362)) & _NIBBLES)
    return _pairs(first, second, _twice_1024(zeros, row), p.prmt(scales, scales, U(0x1010 + 0x2222 * (row & 1))))


@device
def _halves_lin4(state, raw):
    return (
        _row_lin4(raw[0], raw[6], raw[4], 0)
        + _row_lin4(raw[1], raw[6], raw[4], 1)
        + _row_lin4(raw[2], raw[6], raw[5], 2)
        + _row_lin4(raw[3], raw[6], raw[5], 3)
    )


@device
def _begin_lin8(codes, scales, zeros, group_shift, tile, groups, lane):
    quad, part = I((lane >> 2) & 3), I(lane & 3)
    at = codes + A(tile) * A(groups) * A(512) + A(128 * part + 16 * quad)
    return (at, *_begin_scales(scales, zeros, group_shift, tile, groups, quad))


@device
def _load_lin8(state, group):
    at = state[0] + A(group) * A(512)
    return p.load4(at) + p.load4(at + A(64)) + _load_scales(state[1], state[2], state[3], group, _BYTE_SIGNS)


@device
def _row_lin8(low, high, zeros, scales, row):
    scale = p.prmt(scales, scales, U(0x1010 + 0x2222 * (row & 1)))
    return _row_bytes(low, high, _twice_1024(zeros, row), scale)


@device
def _halves_lin8(state, raw):
    return (
        _row_lin8(raw[0], raw[4], raw[10], raw[8], 0)
        + _row_lin8(raw[1], raw[5], raw[10], raw[8], 1)
        + _row_lin8(raw[2], raw[6], raw[10], raw[9], 2)
        + _row_lin8(raw[3], raw[7], raw[10], raw[9], 3)
    )


@device
def _begin_bf16(values, tile, groups, lane):
    quad, part = I((lane >> 2) & 3), I(lane & 3)
    return (values + A(tile) * A(groups) * A(1024) + A(256 * part + 8 * quad),)


@device
def _load_bf16(state, group):
    at = state[0] + A(group) * A(1024)
    return (
        p.load2(at) + p.load2(at + A(32)) + p.load2(at + A(64)) + p.load2(at + A(96))
        + p.load2(at + A(128)) + p.load2(at + A(160)) + p.load2(at + A(192)) + p.load2(at + A(224))
    )  # fmt: skip


@device
def _begin_f32(values, tile, groups, lane):
    quad, part = I((lane >> 2) & 3), I(lane & 3)
    return (values + A(tile) * A(groups) * A(2048) + A(512 * part + 16 * quad),)


@device
def _load_f32(state, group):
    at = state[0] + A(group) * A(2048)
    return (
        p.load4(at) + p.load4(at + A(64)) + p.load4(at + A(128)) + p.load4(at + A(192))
        + p.load4(at + A(256)) + p.load4(at + A(320)) + p.load4(at + A(384)) + p.load4(at + A(448))
    )  # fmt: skip


def _dense_halves(target: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return `halves` of bf16 and of f32."""
    if target >= 80:
        pack = device(lambda low, high: p.pack_f16x2(p.float_of_bits(high), p.float_of_bits(low)))
    else:
        pack = device(lambda low, high: p.pair_of(p.float_of_bits(low), p.float_of_bits(high)))

    @device
    def even(raw, word):
        """Return the pairs of the row in the lower halves of word `word` of each column."""
        return (
            pack(U(raw[word] << U(16)), U(raw[word + 8] << U(16))),
            pack(U(raw[word + 2] << U(16)), U(raw[word + 10] << U(16))),
            pack(U(raw[word + 4] << U(16)), U(raw[word + 12] << U(16))),
            pack(U(raw[word + 6] << U(16)), U(raw[word + 14] << U(16))),
        )

    @device
    def odd(raw, word):
        """Return the pairs of the row in the upper halves."""
        return (
            pack(U(raw[word] & _UPPER), U(raw[word + 8] & _UPPER)),
            pack(U(raw[word + 2] & _UPPER), U(raw[word + 10] & _UPPER)),
            pack(U(raw[word + 4] & _UPPER), U(raw[word + 12] & _UPPER)),
            pack(U(raw[word + 6] & _UPPER), U(raw[word + 14] & _UPPER)),
        )

    @device
    def halves_bf16(state, raw):
        return even(raw, 0) + odd(raw, 0) + even(raw, 1) + odd(raw, 1)

    @device
    def row_f32(raw, row):
        return (
            pack(raw[row], raw[row + 16]),
            pack(raw[row + 4], raw[row + 20]),
            pack(raw[row + 8], raw[row + 24]),
            pack(raw[row + 12], raw[row + 28]),
        )

    @device
    def halves_f32(state, raw):
        return row_f32(raw, 0) + row_f32(raw, 1) + row_f32(raw, 2) + row_f32(raw, 3)

    return halves_bf16, halves_f32


def weight_formats(target: int) -> dict[str, WeightFormat]:
    """Return the formats by name, for compute capability `target`."""
    halves_bf16, halves_f32 = _dense_halves(target)
    linear = ("codes", "scales", "zeros", "group_shift")
    return {
        "q4": WeightFormat(("codes", "scales", "table"), "lll", _begin_q4, _load_q4, _halves_q4, row_scales=True),
        "q8": WeightFormat(("codes", "scales"), "ll", _begin_q8, _load_q8, _halves_q8, row_scales=True),
        "lin4": WeightFormat(linear, "llli", _begin_lin4, _load_lin4, _halves_lin4),
        "lin8": WeightFormat(linear, "llli", _begin_lin8, _load_lin8, _halves_lin8),
        "bf16": WeightFormat(("values",), "l", _begin_bf16, _load_bf16, halves_bf16, blocks_per_sm=2),
        "f32": WeightFormat(("values",), "l", _begin_f32, _load_f32, halves_f32, blocks_per_sm=2),
    }
