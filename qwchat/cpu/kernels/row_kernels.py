"""Kernels that work on single rows: RMSNorm, SwiGLU, quantisation of activations, exponentials.

`x`, `out` and the like are addresses; `columns` are multiples of 32. Each kernel has a NumPy twin in
`qwchat.cpu.kernels.reference`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from quant.native.backend import types
from qwchat.cpu.kernels import simd
from qwchat.cpu.kernels.jit import inlined, kernel
from qwchat.cpu.kernels.records import BLOCK, PACKED_BLOCK_BYTES, TOKEN_LANES

_f32 = np.float32
# Constants of exponential: ln(2) in two parts, bounds without overflow, and coefficients 1/n!.
_LOG2_E, _LN2_HIGH, _LN2_LOW = _f32(1.44269504), _f32(0.693359375), _f32(-2.12194440e-4)
_EXP_LOW, _EXP_HIGH = _f32(-87.33), _f32(88.37)
_C2, _C3, _C4, _C5, _C6, _C7 = (_f32(1 / math.factorial(n)) for n in range(2, 8))
_ROUNDER = _f32(1.5 * 2**23)
_ONE, _ZERO, _INT8_MAX = _f32(1), _f32(0), _f32(127)
_SMALLEST = _f32(1e-36)  # its inverse, times 127, is still finite


@inlined
def _lower_terms(y, r):
    """Return the Taylor polynomial from degree 4 down to 0, by Horner's rule.

    `y`: the terms from degree 5 on, divided by r**5.
    """
    y = simd.fma(y, r, simd.splat(_C4))
    y = simd.fma(y, r, simd.splat(_C3))
    y = simd.fma(y, r, simd.splat(_C2))
    y = simd.fma(y, r, simd.splat(_ONE))
    return simd.fma(y, r, simd.splat(_ONE))


@inlined
def exponential(x):
    """Return exp of sixteen lanes, with a relative error below 3e-7.

    exp(x) = 2**n * exp(r) with |r| <= ln(2)/2: Cody-Waite reduction, then the Taylor polynomial of degree 7, as in
    Cephes. Below -87.33 the result is exactly 0, so that masked lanes vanish.
    """
    bounded = simd.minimum(simd.maximum(x, simd.splat(_EXP_LOW)), simd.splat(_EXP_HIGH))
    power = simd.round_to_i32(simd.multiply(bounded, simd.splat(_LOG2_E)))
    rounded = simd.to_f32(power)
    r = simd.fma(rounded, simd.splat(-_LN2_HIGH), bounded)
    r = simd.fma(rounded, simd.splat(-_LN2_LOW), r)
    y = simd.fma(r, simd.splat(_C7), simd.splat(_C6))
    y = _lower_terms(simd.fma(y, r, simd.splat(_C5)), r)
    return simd.zero_below(x, simd.splat(_EXP_LOW), simd.multiply(y, simd.power_of_two(power)))


@inlined
def exponential_below_zero(x):
    """Return exp of sixteen lanes that are at most 0, with a relative error below 3e-7.

    It takes half the operations of `exponential`: adding 1.5 * 2**23 rounds to an integer, whose bits are then the low
    bits of the float, and the polynomial ends at degree 6. From -87.33 downwards the result is 1.2e-38, not 0.
    """
    bounded = simd.maximum(simd.splat(_EXP_LOW), x)  # in this order NaN stays NaN
    powers = simd.fma(bounded, simd.splat(_LOG2_E), simd.splat(_ROUNDER))
    rounded = simd.subtract(powers, simd.splat(_ROUNDER))
    r = simd.fma(rounded, simd.splat(-_LN2_HIGH), bounded)
    r = simd.fma(rounded, simd.splat(-_LN2_LOW), r)
    y = _lower_terms(simd.fma(r, simd.splat(_C6), simd.splat(_C5)), r)
    return simd.add_exponents(y, powers)


def _emit_magnitude(builder: Any, low: Any, high: Any) -> Any:
    # Without their signs, floats are ordered like their bits as integers: numbers, then infinity, then NaN.
    """Emit the largest magnitude of two times sixteen lanes; NaN if any lane is NaN."""
    bits = simd.constant(simd.V16I, 0x7FFFFFFF)
    values = [builder.and_(builder.bitcast(value, simd.V16I), bits) for value in (low, high)]
    larger = builder.select(builder.icmp_signed(">", *values), *values)
    return builder.bitcast(simd.emit_call(builder, "llvm.vector.reduce.smax.v16i32", simd.I32, larger), simd.F32)


_magnitude = simd.operation(types.float32, (simd.f32x16, simd.f32x16), _emit_magnitude)
_add = simd.operation(simd.i32x16, (simd.i32x16, simd.i32x16), lambda b, x, y: b.add(x, y))


@inlined
def packed_address(packed, columns, token, terms):
    """Return the address of the first packed block of the group of rows that a token belongs to.

    Args:
        packed: address of packed activations, see `records.ACTIVATIONS`.
        columns: columns of the activations.
        token: the token.
        terms: packed rows of each token.
    """
    return packed + token * terms // TOKEN_LANES * (columns // BLOCK) * PACKED_BLOCK_BYTES


@kernel
def quantise(x, packed, token, columns, terms):
    """Quantise one token's activations in blocks of 32 columns: `x8 = rint(x * 127 / max|x|)`.

    It also stores each block's scale (max|x| / 127), zero correction (-128 * sum of x8) and negative sum (-scale * sum
    of x8). A second term is the first one's rounding error, `x - scale * x8`, quantised in the same way. Both together
    have 16 bits, and a matrix is multiplied by them as if they were two tokens.

    A non-finite value makes the scale NaN, so that it reaches the logits and is reported there, instead of becoming
    some finite number here. Blocks without a value above 1e-36 become 0.

    Args:
        x: (columns) f32.
        packed: address of the first packed block of the token's group, see `packed_address`.
        token: number of the token. Its first row is stored in lane `token * terms % TOKEN_LANES` of each block.
        columns: a multiple of 32.
        terms: 1 or 2.
    """
    first_lane = token * terms % TOKEN_LANES
    for block in range(columns // BLOCK):
        low = simd.load_f32(x + block * 128)
        high = simd.load_f32(x + block * 128 + 64)
        out = packed + block * PACKED_BLOCK_BYTES
        for lane in range(first_lane, first_lane + terms):
            largest = _magnitude(low, high)
            inverse = simd.splat(_INT8_MAX / largest if largest > _SMALLEST else _ZERO)
            first = simd.round_to_i32(simd.multiply(low, inverse))
            second = simd.round_to_i32(simd.multiply(high, inverse))
            simd.store_i8(out + lane * BLOCK, first)
            simd.store_i8(out + lane * BLOCK + 16, second)
            scale = largest / _INT8_MAX + largest * _ZERO
            simd.poke_f32(out + TOKEN_LANES * BLOCK + lane * 4, scale)
            total = simd.sum_lanes_i32(_add(first, second))
            simd.poke_i32(out + TOKEN_LANES * (BLOCK + 4) + lane * 4, np.int32(-128 * total))
            simd.poke_f32(out + TOKEN_LANES * (BLOCK + 8) + lane * 4, np.float32(-total) * scale)
            low = simd.fma(simd.to_f32(first), simd.splat(-scale), low)
            high = simd.fma(simd.to_f32(second), simd.splat(-scale), high)


@kernel
def rms_norm(x, weight, out, columns, epsilon):
    """Compute `out = weight * x / sqrt(mean(x**2) + epsilon)` for one row, RMSNorm (Zhang and Sennrich 2019, eq. 4).

    `x`, `weight` and `out` are (columns) f32; `out` may be `x`.
    """
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
    """Compute `out = gate / (1 + exp(-gate)) * up`, the product inside SwiGLU (Shazeer 2020, eq. 6).

    `gate`, `up` and `out` are (columns) f32; `out` may be one of the others.
    """
    one, zero = simd.splat(_ONE), simd.splat(_ZERO)
    for column in range(0, columns * 4, 64):
        value = simd.load_f32(gate + column)
        bottom = simd.add(one, exponential(simd.subtract(zero, value)))
        simd.store_f32(out + column, simd.multiply(simd.divide(value, bottom), simd.load_f32(up + column)))
