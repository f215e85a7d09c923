"""Row-wise kernels: normalisation, activation functions, quantising of activations, embedding rows.

Addresses are in bytes; `columns` are multiples of 32.  Each has a NumPy twin in :mod:`qwchat.cpu.kernels.reference`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from quant.native.backend import types
from qwchat.cpu.kernels import dequantisation, simd
from qwchat.cpu.kernels.format_kinds import BF16
from qwchat.cpu.kernels.format_kinds import F32 as DENSE_F32
from qwchat.cpu.kernels.jit import inlined, kernel
from qwchat.cpu.kernels.records import BLOCK, PACKED_BLOCK_BYTES, TOKEN_LANES

_f32 = np.float32
# exp(x) = 2**n * exp(r), |r| <= ln(2)/2: Cody-Waite reduction and the Taylor polynomial of degree 7 (Cephes' scheme).
_LOG2_E, _LN2_HIGH, _LN2_LOW = _f32(1.44269504), _f32(0.693359375), _f32(-2.12194440e-4)
_EXP_LOW, _EXP_HIGH = _f32(-87.33), _f32(88.37)
_C2, _C3, _C4, _C5, _C6, _C7 = (_f32(1 / math.factorial(n)) for n in range(2, 8))
_ROUNDER = _f32(1.5 * 2**23)
_ONE, _ZERO, _INT8_MAX = _f32(1), _f32(0), _f32(127)


@inlined
def _lower_terms(y, r):
    """The polynomial from degree 4 down to 0; `y`: its coefficients from 5 on, with their powers of `r`."""
    y = simd.fma(y, r, simd.splat(_C4))
    y = simd.fma(y, r, simd.splat(_C3))
    y = simd.fma(y, r, simd.splat(_C2))
    y = simd.fma(y, r, simd.splat(_ONE))
    return simd.fma(y, r, simd.splat(_ONE))


@inlined
def exponential(x):
    """exp of sixteen lanes: relative error below 3e-7; exactly 0 below -87.33, so that masked lanes vanish."""
    bounded = simd.minimum(simd.maximum(x, simd.splat(_EXP_LOW)), simd.splat(_EXP_HIGH))
    power = simd.round_to_i32(simd.multiply(bounded, simd.splat(_LOG2_E)))
    whole = simd.to_f32(power)
    r = simd.fma(whole, simd.splat(-_LN2_HIGH), bounded)
    r = simd.fma(whole, simd.splat(-_LN2_LOW), r)
    y = simd.fma(r, simd.splat(_C7), simd.splat(_C6))
    y = _lower_terms(simd.fma(y, r, simd.splat(_C5)), r)
    return simd.zero_below(x, simd.splat(_EXP_LOW), simd.multiply(y, simd.power_of_two(power)))


@inlined
def exponential_below_zero(x):
    """exp of sixteen lanes that are at most 0: relative error below 3e-7; 1.2e-38 from -87.33 downwards.

    Half the operations of :func:`exponential`: adding 1.5 * 2**23 rounds to a whole number, whose bits then lie at the
    end of the word, and the polynomial ends at degree 6.
    """
    bounded = simd.maximum(simd.splat(_EXP_LOW), x)  # in this order a NaN stays one
    powers = simd.fma(bounded, simd.splat(_LOG2_E), simd.splat(_ROUNDER))
    whole = simd.subtract(powers, simd.splat(_ROUNDER))
    r = simd.fma(whole, simd.splat(-_LN2_HIGH), bounded)
    r = simd.fma(whole, simd.splat(-_LN2_LOW), r)
    y = _lower_terms(simd.fma(r, simd.splat(_C6), simd.splat(_C5)), r)
    return simd.add_exponents(y, powers)


def _emit_magnitude(builder: Any, low: Any, high: Any) -> Any:
    # Without their sign floats are ordered as integers are, infinity above all numbers and NaN above infinity.
    bits = simd.constant(simd.V16I, 0x7FFFFFFF)
    values = [builder.and_(builder.bitcast(value, simd.V16I), bits) for value in (low, high)]
    larger = builder.select(builder.icmp_signed(">", *values), *values)
    return builder.bitcast(simd.emit_call(builder, "llvm.vector.reduce.smax.v16i32", simd.I32, larger), simd.F32)


# The largest magnitude of two times sixteen lanes, NaN where one is; sums of two times sixteen lanes.
_magnitude = simd.operation(types.float32, (simd.f32x16, simd.f32x16), _emit_magnitude)
_add = simd.operation(simd.i32x16, (simd.i32x16, simd.i32x16), lambda b, x, y: b.add(x, y))


@inlined
def packed_address(packed, columns, row):
    """Address of the first block of packed activations that holds `row`; see records.ACTIVATIONS."""
    return packed + row // TOKEN_LANES * (columns // BLOCK) * PACKED_BLOCK_BYTES


@kernel
def quantise(x, packed, row, columns):
    """One row f32 -> i8 in blocks of 32: `x8 = rint(x * 127 / max|x|)`, with each block's scale and offset.

    `packed`: address of the first block (see records.ACTIVATIONS), in which it takes token_lane `row % TOKEN_LANES`.  A
    non-finite value makes its scale NaN, so that it reaches the logits and is reported there instead of becoming some
    finite number here.
    """
    token_lane = row % TOKEN_LANES
    for block in range(columns // BLOCK):
        low = simd.load_f32(x + block * 128)
        high = simd.load_f32(x + block * 128 + 64)
        largest = _magnitude(low, high)
        inverse = simd.splat(_INT8_MAX / largest if largest > _ZERO else _ZERO)
        first = simd.round_to_i32(simd.multiply(low, inverse))
        second = simd.round_to_i32(simd.multiply(high, inverse))
        out = packed + block * PACKED_BLOCK_BYTES
        simd.store_i8(out + token_lane * BLOCK, first)
        simd.store_i8(out + token_lane * BLOCK + 16, second)
        simd.poke_f32(out + TOKEN_LANES * BLOCK + token_lane * 4, largest / _INT8_MAX + largest * _ZERO)
        total = simd.sum_lanes_i32(_add(first, second))
        simd.poke_i32(out + TOKEN_LANES * (BLOCK + 4) + token_lane * 4, np.int32(-128 * total))


@kernel
def rms_norm(x, weight, out, columns, epsilon):
    """`out = weight * x / sqrt(mean(x**2) + epsilon)` for one row f32 (Zhang and Sennrich, 2019)."""
    squares = simd.splat(_ZERO)
    for column in range(0, columns * 4, 64):
        value = simd.load_f32(x + column)
        squares = simd.fma(value, value, squares)
    mean = simd.sum_lanes(squares) / np.float32(columns)
    factor = simd.splat(_ONE / np.float32(math.sqrt(mean + epsilon)))
    for column in range(0, columns * 4, 64):
        scaled = simd.multiply(simd.load_f32(x + column), factor)
        simd.store_f32(out + column, simd.multiply(simd.load_f32(weight + column), scaled))


@kernel
def silu_multiply(gate, up, out, columns):
    """`out = gate / (1 + exp(-gate)) * up` for one row f32."""
    one, zero = simd.splat(_ONE), simd.splat(_ZERO)
    for column in range(0, columns * 4, 64):
        value = simd.load_f32(gate + column)
        bottom = simd.add(one, exponential(simd.subtract(zero, value)))
        simd.store_f32(out + column, simd.multiply(simd.divide(value, bottom), simd.load_f32(up + column)))


@kernel
def embed(matrix, token, out):
    """Row `token` of an embedding matrix of any format, dequantised into `out` (columns) f32."""
    tile, row = token // 16, token % 16
    codes = matrix.codes + tile * matrix.codes_step
    scales = matrix.scales + tile * matrix.scales_step
    zeros = matrix.zeros + tile * matrix.zeros_step
    row_scale = simd.peek_f32(matrix.row_scales + token * 4) if matrix.row_scales != 0 else _ONE
    for column in range(matrix.columns):
        if matrix.kind == BF16:
            value = simd.peek_bf16(codes + (column * 16 + row) * 2)
        elif matrix.kind == DENSE_F32:
            value = simd.peek_f32(codes + (column * 16 + row) * 4)
        else:
            code = dequantisation.code(matrix, codes, row, column)
            value = row_scale * dequantisation.block_value(matrix, scales, zeros, row, column // BLOCK, code)
        simd.poke_f32(out + column * 4, value)
