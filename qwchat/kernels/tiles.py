"""Code generators for the inner loops of the matrix kernels: one tile of 16 weight rows times 1, 2, 4 or 8 vectors.

Each emits LLVM IR with one accumulator per vector, so that the sums stay in registers.  A lane's sum is made of the
same operations in the same order for any number of vectors: a token's result does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils

from qwchat.kernels import simd
from qwchat.kernels.formats import BF16, BLOCK, LIN4, LIN8, Q4, IntegerFormat
from qwchat.kernels.simd import F32, I8, I64, V16F, V16I

PREFETCH_AHEAD = 4096  # bytes


class Operands(NamedTuple):
    """What a tile needs, as IR values (addresses and byte strides are 64-bit integers).

    ``codes``, ``scales``, ``zeros``: the tile's parts (``codes`` holds the values of a float format); ``zero_step`` is
    16, or 0 where one zero point serves all.  ``columns``: K.  ``x`` (vectors, K) f32, ``x_stride`` bytes
    apart; ``x8`` (vectors, K) i8, ``x_scales`` (vectors, 2, K/32) f32: scales, then sums of ``x8``.
    ``out`` (vectors, 16) f32.
    """

    codes: Any
    scales: Any
    zeros: Any
    zero_step: Any
    blocks_per_scale: Any
    columns: Any
    x: Any
    x_stride: Any
    x8: Any
    x_scales: Any
    out: Any
    out_stride: Any


def _accumulators(builder: Any, count: int) -> list[Any]:
    slots = [cgutils.alloca_once(builder, V16F) for _ in range(count)]
    for slot in slots:
        builder.store(simd.constant(V16F, 0.0), slot)
    return slots


def _store_rows(builder: Any, slots: Sequence[Any], operands: Operands) -> None:
    for row, slot in enumerate(slots):
        address = builder.add(operands.out, builder.mul(operands.out_stride, I64(row)))
        simd.emit_store(builder, address, builder.load(slot), 4)


def _prefetch(builder: Any, address: Any, size: int) -> None:
    for line in range(0, size, 64):
        simd.emit_prefetch(builder, builder.add(address, I64(PREFETCH_AHEAD + line)))


def _scale_and_zero(builder: Any, kind: int, form: IntegerFormat, operands: Operands, block: Any) -> tuple[Any, Any]:
    """The scales of a group and its negated zero points, as f32 lanes; a zero point is less by the dot's offset."""
    offset = simd.dot_offset(form.largest)
    bytes16 = ir.VectorType(I8, 16)
    if kind in (LIN4, LIN8):
        group = builder.udiv(block, operands.blocks_per_scale)
        address = builder.add(operands.scales, builder.mul(group, I64(32)))
        scale = builder.fpext(simd.emit_load(builder, address, ir.VectorType(simd.F16, 16)), V16F)
        zero = simd.emit_load(builder, builder.add(operands.zeros, builder.mul(group, operands.zero_step)), bytes16)
        return scale, builder.sitofp(builder.sub(simd.constant(V16I, offset), builder.zext(zero, V16I)), V16F)
    raw = simd.emit_load(builder, builder.add(operands.scales, builder.mul(block, I64(16))), bytes16)
    if kind != Q4:
        return builder.uitofp(raw, V16F), simd.constant(V16F, float(offset - form.zero))
    wide = builder.sext(raw, V16I)
    scale = builder.sitofp(builder.ashr(wide, simd.constant(V16I, 1)), V16F)
    shift = builder.mul(builder.and_(wide, simd.constant(V16I, 1)), simd.constant(V16I, form.shift))
    return scale, builder.sitofp(builder.add(shift, simd.constant(V16I, offset - form.zero)), V16F)


def _weight_bytes(builder: Any, form: IntegerFormat, address: Any) -> list[tuple[Any, int]]:
    """The lines of a block as (64 weight bytes less the dot's offset, first column)."""
    offset = simd.dot_offset(form.largest)
    lines = [
        simd.emit_load(builder, builder.add(address, I64(offset)), simd.V64B)
        for offset in range(0, form.block_bytes, 64)
    ]
    if form.bits == 8:
        return [(simd.emit_offset(builder, line, offset), 4 * number) for number, line in enumerate(lines)]
    result = []
    for number, line in enumerate(lines):
        for half, codes in enumerate(simd.emit_nibbles(builder, line)):
            if form.table is not None:
                codes = simd.emit_lookup(builder, [value - offset for value in form.table], codes)
            result.append((codes, 8 * number + 4 * half))
    return result


def emit_integer_tile(builder: Any, kind: int, form: IntegerFormat, vectors: int, operands: Operands) -> None:
    """``out[v, lane] = sum over blocks: scale * x_scale * (sum(code * x8) - zero * sum(x8))``."""
    slots = _accumulators(builder, vectors)
    blocks = builder.lshr(operands.columns, I64(5))
    scale_stride = builder.mul(blocks, I64(8))
    with cgutils.for_range(builder, blocks) as loop:
        block = loop.index
        address = builder.add(operands.codes, builder.mul(block, I64(form.block_bytes)))
        if vectors <= 2:
            _prefetch(builder, address, form.block_bytes)
        scale, negative_zero = _scale_and_zero(builder, kind, form, operands, block)
        column = builder.add(operands.x8, builder.mul(block, I64(BLOCK)))
        rows = [builder.add(column, builder.mul(operands.columns, I64(row))) for row in range(vectors)]
        dots = [simd.constant(V16I, 0)] * vectors
        for weights, first in _weight_bytes(builder, form, address):
            for row in range(vectors):
                x4 = simd.emit_bytes4(builder, builder.add(rows[row], I64(first)))
                dots[row] = simd.emit_offset_dot(builder, dots[row], weights, x4)
        here = builder.add(operands.x_scales, builder.mul(block, I64(4)))
        for row, slot in enumerate(slots):
            at = builder.add(here, builder.mul(scale_stride, I64(row)))
            x_scale = simd.emit_splat(builder, simd.emit_load(builder, at, F32, 4))
            at_sum = builder.add(at, builder.mul(blocks, I64(4)))
            x_sum = simd.emit_splat(builder, simd.emit_load(builder, at_sum, F32, 4))
            # Exact: every integer here stays below 2**24.
            centred = simd.emit_fma(builder, negative_zero, x_sum, builder.sitofp(dots[row], V16F))
            builder.store(simd.emit_fma(builder, centred, builder.fmul(scale, x_scale), builder.load(slot)), slot)
    _store_rows(builder, slots, operands)


def emit_float_tile(builder: Any, kind: int, vectors: int, operands: Operands) -> None:
    """``out[v, lane] = sum_k values[k, lane] * x[v, k]`` with ``values`` (K, 16) bf16 or f32; K is even.

    Even and odd columns are summed apart and added at the end: two chains hide the latency of the multiply-add.
    """
    width = 32 if kind == BF16 else 64
    slots = [_accumulators(builder, vectors) for _ in range(2)]
    with cgutils.for_range(builder, builder.lshr(operands.columns, I64(1))) as loop:
        address = builder.add(operands.codes, builder.mul(loop.index, I64(2 * width)))
        if vectors <= 2:
            _prefetch(builder, address, 2 * width)
        column = builder.add(operands.x, builder.mul(loop.index, I64(8)))
        for parity in range(2):
            at = builder.add(address, I64(width * parity))
            line = simd.emit_bf16(builder, at) if kind == BF16 else simd.emit_load(builder, at, V16F, 4)
            for row, slot in enumerate(slots[parity]):
                here = builder.add(builder.add(column, builder.mul(operands.x_stride, I64(row))), I64(4 * parity))
                value = simd.emit_splat(builder, simd.emit_load(builder, here, F32, 4))
                builder.store(simd.emit_fma(builder, line, value, builder.load(slot)), slot)
    for even, odd in zip(*slots, strict=True):
        builder.store(builder.fadd(builder.load(even), builder.load(odd)), even)
    _store_rows(builder, slots[0], operands)
