"""The Walsh-Hadamard transform of groups of 32, in registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quant.native.backend import ir
from qwchat.cpu.kernels import simd
from qwchat.cpu.kernels.jit import inlined, kernel


def _butterfly(distance: int) -> Callable[..., Any]:
    lanes = range(16)
    partner = ir.Constant(ir.VectorType(simd.I32, 16), [lane ^ distance for lane in lanes])
    sign = ir.Constant(simd.V16F, [-1.0 if lane & distance else 1.0 for lane in lanes])
    return lambda builder, x: simd.emit_fma(builder, x, sign, builder.shuffle_vector(x, x, partner))


# Lane i becomes x[i] + x[i ^ d], or x[i ^ d] - x[i] where i has the bit d: a stage of the Walsh-Hadamard transform.
_butterfly_1, _butterfly_2, _butterfly_4, _butterfly_8 = (
    simd.operation(simd.f32x16, (simd.f32x16,), _butterfly(distance)) for distance in (1, 2, 4, 8)
)


@inlined
def _transformed_16(x, factor):
    return simd.multiply(_butterfly_8(_butterfly_4(_butterfly_2(_butterfly_1(x)))), simd.splat(factor))


@kernel
def hadamard(x, size, factor):
    """Walsh-Hadamard transform of each 32 of `size` f32 in place, times `factor`; 1/32 makes it its own inverse.

    Before rounding it spreads one large dimension over its group, which would take all steps otherwise (as in QuaRot,
    Ashkboos et al. 2024).  Products of two transformed vectors are 32 times those of the vectors.
    """
    for offset in range(x, x + size * 4, 128):
        low, high = simd.load_f32(offset), simd.load_f32(offset + 64)
        simd.store_f32(offset, _transformed_16(simd.add(low, high), factor))
        simd.store_f32(offset + 64, _transformed_16(simd.subtract(low, high), factor))
