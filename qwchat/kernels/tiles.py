"""Code generators for the inner loops of the matrix kernels: tiles of 16 weight rows times a few vectors.

Each emits LLVM IR with one accumulator per vector, so that the sums stay in registers.  A lane's sum is made of the
same operations in the same order for any number of vectors, here and in :mod:`qwchat.kernels.panels`: a token's result
depends neither on its neighbours nor on their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils

from qwchat.kernels import simd
from qwchat.kernels.formats import BF16, LIN4, LIN8, Q4, IntegerFormat
from qwchat.kernels.records import BLOCK, SLOTS, SLOTS_BLOCK
from qwchat.kernels.simd import F32, I8, I32, I64, V16F, V16I

PREFETCH_AHEAD = 4096  # bytes
UNSIGNED_ZERO = 128  # the zero point that the offsets of activations are made for


class Weights(NamedTuple):
    """A tile's parts, as IR values (addresses; ``codes`` holds the values of a float format).

    ``zero_step`` is 16, or 0 where one zero point serves all.
    """

    codes: Any
    scales: Any
    zeros: Any
    zero_step: Any
    blocks_per_scale: Any


class Vectors(NamedTuple):
    """What a tile is multiplied with, and where the products go, as IR values.

    For integer formats ``x`` is the address of packed activations, ``x_stride`` bytes from SLOTS vectors to the next
    (see records.ACTIVATIONS); for float formats ``x`` (vectors, columns) f32, ``x_stride`` bytes apart.
    ``out`` (vectors, 16) f32, ``out_stride`` bytes apart.
    """

    columns: Any
    x: Any
    x_stride: Any
    out: Any
    out_stride: Any


def at(builder: Any, base: Any, index: Any, step: int | Any) -> Any:
    """The address ``base + index * step``."""
    return builder.add(base, builder.mul(index, I64(step) if isinstance(step, int) else step))


def accumulators(builder: Any, count: int) -> list[Any]:
    """Variables for sums of sixteen f32 lanes; LLVM keeps them in registers."""
    slots = [cgutils.alloca_once(builder, V16F) for _ in range(count)]
    for slot in slots:
        builder.store(simd.constant(V16F, 0.0), slot)
    return slots


def _store_rows(builder: Any, slots: Sequence[Any], vectors: Vectors) -> None:
    for row, slot in enumerate(slots):
        simd.emit_store(builder, at(builder, vectors.out, I64(row), vectors.out_stride), builder.load(slot), 4)


def _prefetch(builder: Any, address: Any, size: int) -> None:
    for line in range(0, size, 64):
        simd.emit_prefetch(builder, builder.add(address, I64(PREFETCH_AHEAD + line)))


def emit_scale(builder: Any, kind: int, weights: Weights, block: Any) -> tuple[Any, Any]:
    """The scales of a block as f32 lanes, and the table bits of q4 as i32 lanes (None for other formats)."""
    if kind in (LIN4, LIN8):
        address = at(builder, weights.scales, builder.udiv(block, weights.blocks_per_scale), 32)
        return builder.fpext(simd.emit_load(builder, address, ir.VectorType(simd.F16, 16)), V16F), None
    raw = simd.emit_load(builder, at(builder, weights.scales, block, 16), ir.VectorType(I8, 16))
    if kind != Q4:
        return builder.uitofp(raw, V16F), None
    wide = builder.sext(raw, V16I)
    bits = builder.and_(wide, simd.constant(V16I, 1))
    return builder.sitofp(builder.ashr(wide, simd.constant(V16I, 1)), V16F), bits


def emit_zeros(builder: Any, form: IntegerFormat, weights: Weights, block: Any) -> Any:
    """The stored zero points of a block as i32 lanes, for the weight bytes of :func:`emit_weight_bytes`."""
    address = at(builder, weights.zeros, builder.udiv(block, weights.blocks_per_scale), weights.zero_step)
    zeros = builder.zext(simd.emit_load(builder, address, ir.VectorType(I8, 16)), V16I)
    return builder.sub(zeros, simd.constant(V16I, simd.dot_offset(form.largest)))


def emit_weight_bytes(builder: Any, form: IntegerFormat, address: Any) -> list[Any]:
    """A block of codes as lines of 64 weight bytes (16 rows, 4 columns each) less the level's dot offset."""
    offset = simd.dot_offset(form.largest)
    lines = [
        simd.emit_load(builder, builder.add(address, I64(place)), simd.V64B) for place in range(0, form.block_bytes, 64)
    ]
    if form.bits == 8:
        return [simd.emit_offset(builder, line, offset) for line in lines]
    codes = [half for line in lines for half in simd.emit_nibbles(builder, line)]
    if form.table is None:
        return codes
    return [simd.emit_lookup(builder, [value - offset for value in form.table], code) for code in codes]


def emit_start(builder: Any, offset: Any, zero: Any) -> Any:
    """What a dot product starts from: ``-zero * sum(x8)``.

    ``offset`` is -128 times the sum, exactly; ``zero`` is an integer, 128 or 0, or i32 lanes.
    """
    if isinstance(zero, int):
        return offset if zero else simd.constant(V16I, 0)
    return builder.ashr(builder.mul(zero, offset), simd.constant(V16I, UNSIGNED_ZERO.bit_length() - 1))


def emit_slot(builder: Any, block: Any, slot: int, part: int, llvm_type: Any) -> Any:
    """The scale (``part`` 0) or the offset (1) of one slot of a packed block, in every lane."""
    address = builder.add(block, I64(SLOTS * (BLOCK + 4 * part) + 4 * slot))
    return simd.emit_splat(builder, simd.emit_load(builder, address, llvm_type, 4))


def emit_accumulate(builder: Any, slot: Any, dot: Any, scale: Any, x_scale: Any) -> None:
    """``slot += dot * (scale * x_scale)``; ``dot`` is exact, since it stays below 2**24."""
    product = builder.fmul(scale, x_scale)
    builder.store(simd.emit_fma(builder, builder.sitofp(dot, V16F), product, builder.load(slot)), slot)


def emit_integer_tile(
    builder: Any, kind: int, form: IntegerFormat, count: int, weights: Weights, vectors: Vectors
) -> None:
    """``out[v, lane] = sum over blocks: scale * x_scale * (sum(code * x8) - zero * sum(x8))`` for ``count`` vectors."""
    slots = accumulators(builder, count)
    with cgutils.for_range(builder, builder.lshr(vectors.columns, I64(5))) as loop:
        block = loop.index
        address = at(builder, weights.codes, block, form.block_bytes)
        _prefetch(builder, address, form.block_bytes)
        scale, bits = emit_scale(builder, kind, weights, block)
        zero = form.zero - simd.dot_offset(form.largest)
        if kind in (LIN4, LIN8):
            zero = emit_zeros(builder, form, weights, block)
        elif bits is not None:
            zero = builder.sub(simd.constant(V16I, zero), builder.mul(bits, simd.constant(V16I, form.shift)))
        first = at(builder, vectors.x, block, SLOTS_BLOCK)
        groups = [at(builder, first, I64(group), vectors.x_stride) for group in range(-(-count // SLOTS))]
        places = [(groups[number // SLOTS], number % SLOTS) for number in range(count)]
        dots = [emit_start(builder, emit_slot(builder, *place, 1, I32), zero) for place in places]
        for number, line in enumerate(emit_weight_bytes(builder, form, address)):
            for index, (group, slot) in enumerate(places):
                x4 = simd.emit_bytes4(builder, builder.add(group, I64(slot * BLOCK + 4 * number)))
                dots[index] = simd.emit_offset_dot(builder, dots[index], line, x4)
        for place, slot, dot in zip(places, slots, dots, strict=True):
            emit_accumulate(builder, slot, dot, scale, emit_slot(builder, *place, 0, F32))
    _store_rows(builder, slots, vectors)


def emit_float_tile(builder: Any, kind: int, count: int, weights: Weights, vectors: Vectors) -> None:
    """``out[v, lane] = sum_k values[k, lane] * x[v, k]`` with ``values`` (K, 16) bf16 or f32; K is even.

    Even and odd columns are summed apart and added at the end: two chains hide the latency of the multiply-add.
    """
    width = 32 if kind == BF16 else 64
    slots = [accumulators(builder, count) for _ in range(2)]
    with cgutils.for_range(builder, builder.lshr(vectors.columns, I64(1))) as loop:
        address = at(builder, weights.codes, loop.index, 2 * width)
        if count <= 2:
            _prefetch(builder, address, 2 * width)
        column = at(builder, vectors.x, loop.index, 8)
        for parity in range(2):
            place = builder.add(address, I64(width * parity))
            line = simd.emit_bf16(builder, place) if kind == BF16 else simd.emit_load(builder, place, V16F, 4)
            for row, slot in enumerate(slots[parity]):
                here = builder.add(at(builder, column, I64(row), vectors.x_stride), I64(4 * parity))
                value = simd.emit_splat(builder, simd.emit_load(builder, here, F32, 4))
                builder.store(simd.emit_fma(builder, line, value, builder.load(slot)), slot)
    for even, odd in zip(*slots, strict=True):
        builder.store(builder.fadd(builder.load(even), builder.load(odd)), even)
    _store_rows(builder, slots[0], vectors)
