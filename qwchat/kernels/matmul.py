"""Matrix times activations, for every weight format: ``y (tokens, rows) = x (tokens, columns) @ W.T``.

The weights are read in the order in which they lie on disk (16 rows at a time); the tile stays in the first-level
cache while all tokens of a chunk pass it.  Up to 8 tokens share one unpacking of the codes.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from qwchat.kernels import simd
from qwchat.kernels.formats import BF16, F32, INTEGER_FORMATS
from qwchat.kernels.jit import kernel, standalone
from qwchat.kernels.tiles import Operands, emit_float_tile, emit_integer_tile

VECTORS = (8, 4, 2, 1)


@intrinsic
def _tile(
    typing,
    kind,
    vectors,
    codes,
    scales,
    zeros,
    zero_step,
    per_scale,
    columns,
    x,
    x_stride,
    x8,
    x_scales,
    out,
    out_stride,
):
    """All formats and vector counts behind one run-time switch, so that a kernel is compiled once."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        chosen, count, operands = values[0], values[1], Operands(*values[2:])
        for form in (*INTEGER_FORMATS, BF16, F32):
            with builder.if_then(builder.icmp_signed("==", chosen, simd.I64(form))):
                for number in VECTORS:
                    with builder.if_then(builder.icmp_signed("==", count, simd.I64(number))):
                        if form in INTEGER_FORMATS:
                            emit_integer_tile(builder, form, INTEGER_FORMATS[form], number, operands)
                        else:
                            emit_float_tile(builder, form, number, operands)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 14), generate


@standalone(types.void(*[types.int64] * 14))
def run_tile(
    kind, vectors, codes, scales, zeros, zero_step, per_scale, columns, x, x_stride, x8, x_scales, out, out_stride
):
    """One tile of 16 weight rows times ``vectors`` (1, 2, 4 or 8) activations; see :class:`tiles.Operands`."""
    _tile(
        kind, vectors, codes, scales, zeros, zero_step, per_scale, columns, x, x_stride, x8, x_scales, out, out_stride
    )


@kernel
def multiply_tiles(matrix, source, begin, end, first, last, out, out_stride, accumulate, scratch):
    """Rows ``16 * first .. 16 * last`` of ``source[begin:end] @ matrix.T``, scaled and with bias, into ``out``
    (end - begin, rows) f32.

    ``out_stride``: bytes from token to token.  ``accumulate``: add to what ``out`` holds (the residual stream).
    ``scratch``: address of SCRATCH_BYTES bytes of this thread.
    """
    columns = matrix.columns
    for tile in range(first, last):
        token = begin
        while token < end:
            left = end - token
            vectors = 8 if left >= 8 else (4 if left >= 4 else (2 if left >= 2 else 1))
            run_tile(
                matrix.kind,
                vectors,
                matrix.codes + tile * matrix.codes_step,
                matrix.scales + tile * matrix.scales_step,
                matrix.zeros + tile * matrix.zeros_step,
                matrix.zero_step,
                matrix.blocks_per_scale,
                columns,
                source.x + token * columns * 4,
                columns * 4,
                source.x8 + token * columns,
                source.x_scales + token * (columns // 4),
                scratch,
                64,
            )
            for row in range(vectors):
                value = simd.load_f32(scratch + 64 * row)
                target = out + (token - begin + row) * out_stride + tile * 64
                if matrix.row_scales != 0:
                    value = simd.multiply(value, simd.load_f32(matrix.row_scales + tile * 64))
                if matrix.bias != 0:
                    value = simd.add(value, simd.load_f32(matrix.bias + tile * 64))
                if accumulate:
                    value = simd.add(value, simd.load_f32(target))
                simd.store_f32(target, value)
            token += vectors
