"""Code generators for the inner loops of the matrix kernels: tiles of 16 weight rows times a few vectors.

A tile stores its codes in lines of 64 bytes. A line of an 8-bit format holds 4 columns: byte 4 * row + column of 16
rows. A line of a 4-bit format holds 8 columns: the low nibbles are columns 0 to 3, the high nibbles columns 4 to 7.
Three lines of a 6-bit format hold 16 columns: the low 6 bits of each are 4 columns, the high 2 bits of all of them are
the last 4. The dot product instructions multiply four bytes of a row by four activations and add to the row's 32-bit
lane, so that a block of 32 columns takes 8 of them.

Each generator emits LLVM IR with one accumulator per vector, so that the sums stay in registers. A lane's sum consists
of the same operations in the same order for any number of vectors, here and in `matmul_panels`. A token's result
therefore depends neither on its neighbours nor on their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from quant.formats import GroupedFormat
from quant.formats.format import TILE_ROWS
from quant.formats.integer import BYTE_BITS, SIX_BITS
from quant.native import simd_level
from quant.native.backend import cgutils, ir
from qwchat.cpu.kernels import dot_products, simd
from qwchat.cpu.kernels.format_kinds import (
    BF16,
    BLOCKS_PER_SUPER_SCALE,
    block_bytes,
    has_scale_per_block,
    scale_bytes,
)
from qwchat.cpu.kernels.records import BLOCK, PACKED_BLOCK_BYTES, TOKEN_LANES
from qwchat.cpu.kernels.simd import F32, I8, I32, I64, V16F

PREFETCH_AHEAD = 16_384  # bytes of codes between a prefetch and its use
CORRECTED_ZERO = 128  # zero point for which the zero corrections of activations are exact as they are


class TileWeights(NamedTuple):
    """Parts of a weight tile, as IR values; the parts are addresses.

    Attributes:
        codes: lines of codes, or the values of a float format.
        scales: (groups, 16).
        zeros: zero points (groups, 16) u8.
        zero_step: bytes from one group's zero points to the next: 16, or 0 if one zero point serves all groups.
        blocks_per_scale: blocks of 32 columns in a group.
        minimums: (groups, 16), in formats that have minimums.
        super_scales: (groups / 8, 16) f16, in formats that have super scales.
        super_minimums: the same for minimums.
    """

    codes: Any
    scales: Any
    zeros: Any
    zero_step: Any
    blocks_per_scale: Any
    minimums: Any
    super_scales: Any
    super_minimums: Any


class TileVectors(NamedTuple):
    """Vectors that a tile is multiplied by, and the place of the products, as IR values.

    Attributes:
        columns: columns of the matrix.
        x: for integer formats the address of packed activations (`records.ACTIVATIONS`), for float formats of (vectors,
            columns) f32.
        x_stride: bytes to the next group of TOKEN_LANES vectors (integer formats), or to the next vector (float
            formats).
        out: address of (vectors, 16) f32.
        out_stride: bytes from one vector's products to the next.
    """

    columns: Any
    x: Any
    x_stride: Any
    out: Any
    out_stride: Any


def emit_address(builder: Any, base: Any, index: Any, step: int | Any) -> Any:
    """Emit the address `base + index * step`."""
    return builder.add(base, builder.mul(index, I64(step) if isinstance(step, int) else step))


def accumulators(builder: Any, count: int, lanes: int = 16) -> list[Any]:
    """Emit `count` variables of f32 lanes, set to 0; LLVM keeps them in registers."""
    vector = ir.VectorType(F32, lanes)
    sums = [cgutils.alloca_once(builder, vector) for _ in range(count)]
    for total in sums:
        builder.store(simd.constant(vector, 0.0), total)
    return sums


def _store_rows(builder: Any, sums: Sequence[Any], vectors: TileVectors, lane: int = 0) -> None:
    """Emit the stores of one strip's sums, from row `lane` of the tile on."""
    for row, total in enumerate(sums):
        address = emit_address(builder, builder.add(vectors.out, I64(4 * lane)), I64(row), vectors.out_stride)
        simd.emit_store(builder, address, builder.load(total), 4)


def _prefetch(builder: Any, address: Any, size: int) -> None:
    """Emit prefetches of the cache lines of `size` bytes."""
    for line in range(0, size, 64):
        simd.emit_prefetch(builder, builder.add(address, I64(line)))


def _prefetch_block(builder: Any, fmt: GroupedFormat, weights: TileWeights, block: Any, blocks: Any) -> None:
    """Emit prefetches of the codes and scales that are needed PREFETCH_AHEAD bytes (at most one tile) later.

    At the end of a tile these are the scales of the next tile, which the processor's own prefetcher would find only
    after some misses.
    """
    size = block_bytes(fmt)
    most = I64(PREFETCH_AHEAD // size)
    ahead = builder.select(builder.icmp_signed("<", blocks, most), blocks, most)
    there = builder.add(block, ahead)
    _prefetch(builder, emit_address(builder, weights.codes, there, size), size)
    group = emit_group(builder, fmt, weights, there)
    for part in (weights.scales, weights.minimums)[: 2 if fmt.minimum_sign else 1]:
        simd.emit_prefetch(builder, emit_address(builder, part, group, scale_bytes(fmt)))


class Strip(NamedTuple):
    """Rows `lane` to `lane + lanes - 1` of a tile: as many as a register has 32-bit lanes, or all 16."""

    lane: int = 0
    lanes: int = 16

    def load(self, builder: Any, address: Any, element: Any, per_lane: int = 1) -> Any:
        """Emit a load of the strip's part of 16 rows of `per_lane` elements each."""
        size = element.width // 8 if isinstance(element, ir.IntType) else 2
        place = builder.add(address, I64(self.lane * per_lane * size))
        return simd.emit_load(builder, place, ir.VectorType(element, self.lanes * per_lane))

    def words(self) -> Any:
        """Return the vector type with one 32-bit integer per row."""
        return ir.VectorType(I32, self.lanes)

    def floats(self) -> Any:
        """Return the vector type with one float per row."""
        return ir.VectorType(F32, self.lanes)


WHOLE_TILE = Strip()


def tile_strips() -> list[Strip]:
    """Return the strips of a tile at the SIMD level in force."""
    return [Strip(lane, simd_level.lanes()) for lane in range(0, 16, simd_level.lanes())]


def emit_group(builder: Any, fmt: GroupedFormat, weights: TileWeights, block: Any) -> Any:
    """Emit the number of the group that a block belongs to."""
    return block if has_scale_per_block(fmt) else builder.udiv(block, weights.blocks_per_scale)


def emit_scale(
    builder: Any, fmt: GroupedFormat, weights: TileWeights, group: Any, strip: Strip = WHOLE_TILE
) -> tuple[Any, Any]:
    """Emit the scales of a group.

    Returns:
        The scales as f32 lanes, and their table bits as i32 lanes. The table bit is the low bit of an int8 scale and
        chooses between two tables of levels; it is None for formats without it.
    """
    address = emit_address(builder, weights.scales, group, scale_bytes(fmt))
    if fmt.shift:
        wide = builder.sext(strip.load(builder, address, I8), strip.words())
        bits = builder.and_(wide, simd.constant(wide.type, 1))
        return builder.sitofp(builder.ashr(wide, simd.constant(wide.type, 1)), strip.floats()), bits
    scales = _emit_factors(builder, fmt, address, strip)
    if fmt.super_scales:
        scales = builder.fmul(scales, _emit_super_scales(builder, weights.super_scales, group, strip))
    return scales, None


def _emit_factors(builder: Any, fmt: GroupedFormat, address: Any, strip: Strip) -> Any:
    """Emit a load of stored scales or minimums as f32 lanes."""
    if fmt.scale == "float16":
        return builder.fpext(strip.load(builder, address, simd.F16), strip.floats())
    convert = builder.uitofp if fmt.scale == "uint8" else builder.sitofp
    return convert(strip.load(builder, address, I8), strip.floats())


def _emit_super_scales(builder: Any, base: Any, group: Any, strip: Strip) -> Any:
    """Emit the super scales, or the super minimums, of a group of one block as f32 lanes."""
    address = emit_address(builder, base, builder.udiv(group, I64(BLOCKS_PER_SUPER_SCALE)), 2 * TILE_ROWS)
    return builder.fpext(strip.load(builder, address, simd.F16), strip.floats())


def emit_subtrahend(
    builder: Any, fmt: GroupedFormat, weights: TileWeights, group: Any, strip: Strip = WHOLE_TILE
) -> Any:
    """Emit what is subtracted from the values of a group, `-sign * minimum`, as f32 lanes."""
    minimums = _emit_factors(builder, fmt, emit_address(builder, weights.minimums, group, scale_bytes(fmt)), strip)
    if fmt.super_scales:
        minimums = builder.fmul(minimums, _emit_super_scales(builder, weights.super_minimums, group, strip))
    return builder.fneg(minimums) if fmt.minimum_sign > 0 else minimums


def emit_zeros(builder: Any, fmt: GroupedFormat, weights: TileWeights, group: Any, strip: Strip = WHOLE_TILE) -> Any:
    """Emit the stored zero points of a group as i32 lanes.

    They are reduced by the level's dot offset, as the weight bytes of `emit_weight_bytes` are.
    """
    address = emit_address(builder, weights.zeros, group, weights.zero_step)
    zeros = builder.zext(strip.load(builder, address, I8), strip.words())
    return builder.sub(zeros, simd.constant(zeros.type, dot_products.dot_offset(fmt.largest)))


def emit_weight_bytes(builder: Any, fmt: GroupedFormat, address: Any, strip: Strip = WHOLE_TILE) -> Iterator[Any]:
    """Yield a block of codes as lines of weight bytes: the strip's rows, 4 columns each.

    Codes are replaced by the levels of the format, and all bytes are reduced by the SIMD level's dot offset.
    """
    offset = dot_products.dot_offset(fmt.largest)
    upper: list[Any] = []
    for place in range(0, block_bytes(fmt), 64):
        here = simd.emit_pin(builder, builder.add(address, I64(place)))
        line = strip.load(builder, here, I8, per_lane=4)
        if fmt.stored_bits == SIX_BITS:
            yield builder.and_(line, simd.constant(line.type, 63))
            upper.append(line)
            if len(upper) == 3:
                yield _emit_upper_codes(builder, upper)
                upper.clear()
            continue
        if fmt.stored_bits == BYTE_BITS:
            yield dot_products.emit_offset(builder, line, offset)
            continue
        for codes in simd.emit_nibbles(builder, line):
            if fmt.table is None:
                yield codes
            else:
                yield simd.emit_lookup(builder, [value - offset for value in fmt.table], codes)


def _emit_upper_codes(builder: Any, lines: Sequence[Any]) -> Any:
    """Emit the codes in the high 2 bits of three lines: bits 0 and 1, 2 and 3, 4 and 5."""
    # Shifts of 32-bit lanes, since x86 has none of bytes. The masks remove what comes from the neighbouring byte.
    words = ir.VectorType(I32, lines[0].type.count // 4)
    codes = simd.constant(lines[0].type, 0)
    for number, line in enumerate(lines):
        moved = builder.lshr(builder.bitcast(line, words), simd.constant(words, 6 - 2 * number))
        here = builder.and_(builder.bitcast(moved, line.type), simd.constant(line.type, 3 << 2 * number))
        codes = builder.or_(codes, here)
    return codes


def emit_initial_dot(builder: Any, correction: Any, zero: Any) -> Any:
    """Emit the value that a dot product starts from: `-zero * sum(x8)`.

    It is exact, since the product of the zero point and the correction is a multiple of 128.

    Args:
        builder: of the IR.
        correction: the token's zero correction, -128 * sum(x8), as i32 lanes.
        zero: the zero point, an integer or i32 lanes.
    """
    if isinstance(zero, int):
        if zero == CORRECTED_ZERO:
            return correction
        if zero == 0:
            return simd.constant(correction.type, 0)
        zero = simd.constant(correction.type, zero)
    return builder.ashr(builder.mul(zero, correction), simd.constant(correction.type, CORRECTED_ZERO.bit_length() - 1))


def emit_token_factor(builder: Any, block: Any, lane: int, part: int, llvm_type: Any, lanes: int = 16) -> Any:
    """Emit scale (`part` 0), zero correction (1) or negative sum (2) of one token of a packed block, in every lane.

    `lane`: the token's number within the block, below TOKEN_LANES.
    """
    address = builder.add(block, I64(TOKEN_LANES * (BLOCK + 4 * part) + 4 * lane))
    return simd.emit_splat(builder, simd.emit_load(builder, address, llvm_type, 4), lanes)


def emit_accumulate(builder: Any, total: Any, dot: Any, scale: Any, x_scale: Any) -> None:
    """Emit `total += dot * (scale * x_scale)`; `dot` is exact in f32, since it stays below 2**24."""
    product = builder.fmul(scale, x_scale)
    updated = simd.emit_fma(builder, builder.sitofp(dot, scale.type), product, builder.load(total))
    builder.store(simd.emit_pin(builder, updated), total)


def emit_accumulate_minimum(builder: Any, total: Any, subtrahend: Any, block: Any, lane: int) -> None:
    """Emit `total -= subtrahend * (sum(x8) * x_scale)` for one token of a packed block; see `emit_token_factor`."""
    negative_sum = emit_token_factor(builder, block, lane, 2, F32, subtrahend.type.count)
    updated = simd.emit_fma(builder, negative_sum, subtrahend, builder.load(total))
    builder.store(simd.emit_pin(builder, updated), total)


def emit_integer_tile(builder: Any, fmt: GroupedFormat, count: int, weights: TileWeights, vectors: TileVectors) -> None:
    """Emit the product of a tile of an integer format with `count` vectors.

        out[v, row] = sum over blocks: scale * x_scale * (sum(level[code] * x8) - zero * sum(x8))
                                       + sign * minimum * x_scale * sum(x8)

    The sums within a block are exact integers; only the products with the scales, and their sum, are rounded.
    """
    sums = {strip: accumulators(builder, count, strip.lanes) for strip in tile_strips()}
    blocks = builder.lshr(vectors.columns, I64(5))
    with cgutils.for_range(builder, blocks) as loop:
        block = (loop.index, emit_group(builder, fmt, weights, loop.index))
        _prefetch_block(builder, fmt, weights, loop.index, blocks)
        first = emit_address(builder, vectors.x, loop.index, PACKED_BLOCK_BYTES)
        for strip, strip_sums in sums.items():
            here = simd.emit_pin(builder, first)
            groups = [
                emit_address(builder, here, I64(group), vectors.x_stride) for group in range(-(-count // TOKEN_LANES))
            ]
            places = [(groups[number // TOKEN_LANES], number % TOKEN_LANES) for number in range(count)]
            _emit_block(builder, (fmt, strip), weights, block, list(zip(places, strip_sums, strict=True)))
    for strip, strip_sums in sums.items():
        _store_rows(builder, strip_sums, vectors, strip.lane)


def _emit_block(
    builder: Any,
    format_and_strip: tuple[GroupedFormat, Strip],
    weights: TileWeights,
    block: tuple[Any, Any],
    vectors: list[tuple[tuple[Any, int], Any]],
) -> None:
    """Emit the products of one strip and one block with all vectors.

    Args:
        builder: of the IR.
        format_and_strip: the format, and the strip.
        weights: the tile.
        block: number of the block, and of its group.
        vectors: for each vector its place (address of the packed block, lane within it) and its sum.
    """
    number, group = block
    fmt, strip = format_and_strip
    _, bits = emit_scale(builder, fmt, weights, group, strip)
    zero = fmt.zero - dot_products.dot_offset(fmt.largest)
    if fmt.allows_zeros:
        zero = emit_zeros(builder, fmt, weights, group, strip)
    elif bits is not None:
        shift = builder.mul(simd.emit_pin(builder, bits), simd.constant(bits.type, fmt.shift))
        zero = builder.sub(simd.constant(bits.type, zero), shift)
    dots = [
        emit_initial_dot(builder, emit_token_factor(builder, x, lane, 1, I32, strip.lanes), zero)
        for (x, lane), _ in vectors
    ]
    lines = emit_weight_bytes(builder, fmt, emit_address(builder, weights.codes, number, block_bytes(fmt)), strip)
    for line_number, line in enumerate(lines):
        for index, ((x, lane), _) in enumerate(vectors):
            address = builder.add(x, I64(lane * BLOCK + 4 * line_number))
            x4 = simd.emit_bytes4(builder, address, strip.lanes)
            dots[index] = simd.emit_pin(builder, dot_products.emit_offset_dot(builder, dots[index], line, x4))
    # Loading the scales again costs less than keeping them in a register.
    scale, _ = emit_scale(builder, fmt, weights, simd.emit_pin(builder, group), strip)
    for ((x, lane), total), dot in zip(vectors, dots, strict=True):
        emit_accumulate(builder, total, dot, scale, emit_token_factor(builder, x, lane, 0, F32, strip.lanes))
    if fmt.minimum_sign:
        subtrahend = emit_subtrahend(builder, fmt, weights, simd.emit_pin(builder, group), strip)
        for (x, lane), total in vectors:
            emit_accumulate_minimum(builder, total, subtrahend, x, lane)


def emit_float_tile(builder: Any, kind: int, count: int, weights: TileWeights, vectors: TileVectors) -> None:
    """Emit the product of a tile of a float format with `count` vectors, for an even number of columns.

        out[v, row] = sum over k: values[k, row] * x[v, k]          values (columns, 16) bf16 or f32

    Even and odd columns are summed separately and added at the end: two chains hide the latency of multiply-add.
    """
    width = 32 if kind == BF16 else 64
    chains = [accumulators(builder, count) for _ in range(2)]
    with cgutils.for_range(builder, builder.lshr(vectors.columns, I64(1))) as loop:
        address = emit_address(builder, weights.codes, loop.index, 2 * width)
        if count <= 2:
            _prefetch(builder, builder.add(address, I64(PREFETCH_AHEAD)), 2 * width)
        column = emit_address(builder, vectors.x, loop.index, 8)
        for parity in range(2):
            place = builder.add(address, I64(width * parity))
            line = simd.emit_bf16(builder, place) if kind == BF16 else simd.emit_load(builder, place, V16F, 4)
            for row, total in enumerate(chains[parity]):
                here = builder.add(emit_address(builder, column, I64(row), vectors.x_stride), I64(4 * parity))
                value = simd.emit_splat(builder, simd.emit_load(builder, here, F32, 4))
                builder.store(simd.emit_fma(builder, line, value, builder.load(total)), total)
    for even, odd in zip(*chains, strict=True):
        builder.store(builder.fadd(builder.load(even), builder.load(odd)), even)
    _store_rows(builder, chains[0], vectors)
