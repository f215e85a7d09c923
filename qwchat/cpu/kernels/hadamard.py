"""The Walsh-Hadamard transform of groups of 32 values, in registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quant.native.backend import ir
from qwchat.cpu.kernels import simd
from qwchat.cpu.kernels.jit import inlined, kernel


def _butterfly(distance: int) -> Callable[..., Any]:
    """Return an emitter of one stage of the transform: combine lanes whose numbers differ in the bit `distance`.

    Lane i becomes x[i] + x[i ^ distance], or x[i ^ distance] - x[i] if i has that bit.
    """
    lanes = range(16)
    partner = ir.Constant(ir.VectorType(simd.I32, 16), [lane ^ distance for lane in lanes])
    sign = ir.Constant(simd.V16F, [-1.0 if lane & distance else 1.0 for lane in lanes])
    return lambda builder, x: simd.emit_fma(builder, x, sign, builder.shuffle_vector(x, x, partner))


_butterfly_1, _butterfly_2, _butterfly_4, _butterfly_8 = (
    simd.operation(simd.f32x16, (simd.f32x16,), _butterfly(distance)) for distance in (1, 2, 4, 8)
)


@inlined
def _transformed_16(x, factor):
    """Return the transform of sixteen lanes, times `factor`."""
    return simd.multiply(_butterfly_8(_butterfly_4(_butterfly_2(_butterfly_1(x)))), simd.splat(factor))


@kernel
def hadamard(x, size, factor):
    """Transform each group of 32 values in place, times `factor`; with 1/32 the transform is its own inverse.

    Before rounding, the transform spreads a single large dimension over its group, where it would otherwise determine
    the scale alone (as in QuaRot, Ashkboos et al. 2024). The dot product of two transformed vectors is 32 times that of
    the vectors.

    Args:
        x: (size) f32.
        size: a multiple of 32.
        factor: f32, applied to the result.
    """
    for offset in range(x, x + size * 4, 128):
        low, high = simd.load_f32(offset), simd.load_f32(offset + 64)
        simd.store_f32(offset, _transformed_16(simd.add(low, high), factor))
        simd.store_f32(offset + 64, _transformed_16(simd.subtract(low, high), factor))
