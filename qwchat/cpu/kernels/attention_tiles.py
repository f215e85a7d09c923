"""Code generators for the two products of attention: queries times keys, and weights times values.

Both work on eight rows (a row is one query head of one token) against positions of a split. Each lane has one chain of
operations, in the order of dimensions or of positions, whatever the shape of the register tile. The result therefore
depends neither on the SIMD level nor on which rows are computed together.

Layout of a KV head's keys, where lanes are positions:

    f32  (positions/16, head_dim, 16) f32
    q8   (positions/16, head_dim/4, 16, 4) u8, the code plus 128;  scales (positions/16, head_dim/32, 16) f16

Layout of its values, where lanes are dimensions:

    f32  (head_dim/16, positions, 16) f32
    q8   (head_dim/16, positions/4, 16, 4) i8, four positions in the order 0, 2, 1, 3;
         scales (head_dim/32, positions) f16

The weights are multiplied by the scales of the values before the product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quant.native.backend import cgutils, intrinsic, ir, types
from quant.native.simd_level import vector_registers
from qwchat.cpu.kernels import dot_products, simd
from qwchat.cpu.kernels.jit import standalone
from qwchat.cpu.kernels.records import ATTENTION_ROWS, KV_Q8, SPLIT_POSITIONS
from qwchat.cpu.kernels.simd import F16, F32, I16, I32, I64, V16F, V16I

_WIDE = vector_registers() >= 32
# Rows and columns (of 16 lanes) of a register tile: as many sums as fit in registers beside the operands.
_SCORE_TILE = (4, 2) if _WIDE else (2, 1)
_F32_VALUE_TILE = (4, 2) if _WIDE else (2, 1)  # two chains each
_Q8_VALUE_TILE = (8, 2) if _WIDE else (4, 1)
_ROW_BYTES = SPLIT_POSITIONS * 4  # from row to row of scores and f32 weights


Line = Callable[[int, Any], Any]  # (number of a column or row, k) -> address


def _zeros(builder: Any, rows: int, columns: int) -> list[list[Any]]:
    """Emit (rows, columns) variables of 16 lanes f32, set to 0."""
    sums = [[cgutils.alloca_once(builder, V16F) for _ in range(columns)] for _ in range(rows)]
    for row in sums:
        for total in row:
            builder.store(simd.constant(V16F, 0.0), total)
    return sums


def _store(builder: Any, sums: list[list[Any]], out: Any, row_bytes: Any, column_bytes: Any) -> None:
    """Emit the stores of a register tile of sums."""
    for row, columns in enumerate(sums):
        for column, total in enumerate(columns):
            offset = builder.add(builder.mul(row_bytes, I64(row)), builder.mul(column_bytes, I64(column)))
            simd.emit_store(builder, builder.add(out, offset), builder.load(total), 4)


def _splat_at(builder: Any, address: Any, llvm_type: Any) -> Any:
    """Emit the scalar at `address` in every lane."""
    return simd.emit_splat(builder, simd.emit_load(builder, address, llvm_type, 4))


def _sum_products(builder: Any, shape: tuple[int, int], count: Any, lines: Line, value: Line) -> list[list[Any]]:
    """Emit `sum over k < count: lines(column, k) * value(row, k)` for a register tile of `shape`, all f32.

    Even and odd k are summed separately and added at the end, which halves the length of each chain of roundings.
    `lines` and `value` emit addresses, of 16 lanes and of a scalar.
    """
    chains = [_zeros(builder, *shape) for _ in range(2)]
    with cgutils.for_range(builder, builder.lshr(count, I64(1))) as loop:
        for parity, sums in enumerate(chains):
            k = builder.add(builder.mul(loop.index, I64(2)), I64(parity))
            vectors = [simd.emit_load(builder, lines(column, k), V16F, 4) for column in range(shape[1])]
            for row, columns in enumerate(sums):
                factor = _splat_at(builder, value(row, k), F32)
                for vector, total in zip(vectors, columns, strict=True):
                    builder.store(simd.emit_fma(builder, vector, factor, builder.load(total)), total)
    for even, odd in zip(*chains, strict=True):
        for total, other in zip(even, odd, strict=True):
            builder.store(builder.fadd(builder.load(total), builder.load(other)), total)
    return chains[0]


def _f32_scores(builder: Any, shape: tuple[int, int], keys: Any, head_dim: Any, x: Any) -> list[list[Any]]:
    def line(tile: int, k: Any) -> Any:
        return builder.add(keys, builder.mul(builder.add(builder.mul(head_dim, I64(tile)), k), I64(64)))

    def value(row: int, k: Any) -> Any:
        return builder.add(x, builder.mul(builder.add(builder.mul(head_dim, I64(row)), k), I64(4)))

    return _sum_products(builder, shape, head_dim, line, value)


def _q8_scores(
    builder: Any, sums: list[list[Any]], keys: Any, key_scales: Any, head_dim: Any, queries: tuple[Any, Any, Any]
) -> None:
    """Emit scores for an 8-bit cache.

        sums[row, lane] += sum over blocks of 32: key_scale * x_scale * (zero_correction + sum(code * x8))

    `queries` are the addresses of the codes, scales and zero corrections of the tile's first row.
    """
    x8, x_scales, x_corrections = queries
    rows, tiles = len(sums), len(sums[0])
    blocks = builder.lshr(head_dim, I64(5))
    tile_bytes, scale_bytes = builder.mul(head_dim, I64(16)), builder.mul(head_dim, I64(1))
    with cgutils.for_range(builder, blocks) as loop:
        block = loop.index
        word = builder.mul(block, I64(4))
        row_words = builder.mul(blocks, I64(4))
        at = [builder.add(word, builder.mul(row_words, I64(row))) for row in range(rows)]
        # Levels that multiply signed bytes take the codes less 128, and then the dot product starts from 0.
        offset = dot_products.dot_offset(255)
        nothing = simd.constant(V16I, 0)
        starts = [nothing if offset else _splat_at(builder, builder.add(x_corrections, place), I32) for place in at]
        dots = [[start] * tiles for start in starts]
        lines = builder.add(keys, builder.mul(block, I64(512)))
        x = builder.add(x8, builder.mul(block, I64(32)))
        for k in range(0, 32, 4):
            codes = [
                simd.emit_load(
                    builder, builder.add(lines, builder.add(builder.mul(tile_bytes, I64(t)), I64(16 * k))), simd.V64B
                )
                for t in range(tiles)
            ]
            codes = [dot_products.emit_offset(builder, code, offset) for code in codes]
            for row in range(rows):
                start = builder.add(builder.mul(head_dim, I64(row)), I64(k))
                x4 = simd.emit_bytes4(builder, builder.add(x, start))
                for tile in range(tiles):
                    dot = dot_products.emit_offset_dot(builder, dots[row][tile], codes[tile], x4)
                    dots[row][tile] = simd.emit_pin(builder, dot)
        here = builder.add(key_scales, builder.mul(block, I64(32)))
        halves = ir.VectorType(F16, 16)
        scales = [
            builder.fpext(simd.emit_load(builder, builder.add(here, builder.mul(scale_bytes, I64(t))), halves, 2), V16F)
            for t in range(tiles)
        ]
        for row, columns in enumerate(sums):
            x_scale = _splat_at(builder, builder.add(x_scales, at[row]), F32)
            for tile, total in enumerate(columns):
                dot = builder.sitofp(dots[row][tile], V16F)
                scale = builder.fmul(scales[tile], x_scale)
                builder.store(simd.emit_fma(builder, dot, scale, builder.load(total)), total)


@intrinsic
def _scores_tile(typing, kind, keys, key_scales, head_dim, x, x8, x_scales, x_corrections, out):
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind, keys, key_scales, head_dim, x, x8, x_scales, x_corrections, out = values
        with builder.if_else(builder.icmp_signed("==", kind, I64(KV_Q8))) as (if_q8, if_f32):
            with if_q8:
                sums = _zeros(builder, *_SCORE_TILE)
                _q8_scores(builder, sums, keys, key_scales, head_dim, (x8, x_scales, x_corrections))
                _store(builder, sums, out, I64(_ROW_BYTES), I64(64))
            with if_f32:
                sums = _f32_scores(builder, _SCORE_TILE, keys, head_dim, x)
                _store(builder, sums, out, I64(_ROW_BYTES), I64(64))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), generate


def _emit_f32_values(builder: Any, operands: tuple[Any, ...]) -> None:
    """Emit `out[row, column] = sum over positions: weights[row, position] * values[position, column]`, all f32."""
    values, column_bytes, positions, weights, _, prefetch_address, out, out_bytes = operands

    def line(column: int, k: Any) -> Any:
        if column == 0:
            simd.emit_prefetch(builder, builder.add(prefetch_address, builder.mul(k, I64(128))))
            simd.emit_prefetch(builder, builder.add(prefetch_address, builder.add(builder.mul(k, I64(128)), I64(64))))
        start = builder.add(values, builder.mul(column_bytes, I64(column)))
        return builder.add(start, builder.mul(k, I64(64)))

    def weight(row: int, k: Any) -> Any:
        return builder.add(weights, builder.add(builder.mul(k, I64(4)), I64(_ROW_BYTES * row)))

    sums = _sum_products(builder, _F32_VALUE_TILE, positions, line, weight)
    _store(builder, sums, out, out_bytes, I64(64))


def _emit_q8_values(builder: Any, operands: tuple[Any, ...]) -> None:
    """Emit the same sum for an 8-bit cache, times the scale of the row's weights.

        out[row, column] = weight_scale[row] * sum over positions: weights[row, position] * codes[position, column]

    Weights have 16 bits, so codes are widened to 16: even bytes are positions 0 and 1 of four, odd bytes 2 and 3.
    """
    values, column_bytes, positions, weights, weight_scales, prefetch_address, out, out_bytes = operands
    rows, columns = _Q8_VALUE_TILE
    shorts = ir.VectorType(I16, 32)
    eight = simd.constant(shorts, 8)
    sums = [[cgutils.alloca_once(builder, V16I) for _ in range(columns)] for _ in range(rows)]
    for total in (total for row_sums in sums for total in row_sums):
        builder.store(simd.constant(V16I, 0), total)
    with cgutils.for_range(builder, builder.lshr(positions, I64(2))) as loop:
        for line in (0, 64):
            simd.emit_prefetch(
                builder, builder.add(prefetch_address, builder.add(builder.mul(loop.index, I64(128)), I64(line)))
            )
        here = builder.add(values, builder.mul(loop.index, I64(64)))
        pairs: list[list[Any]] = [[], []]
        for column in range(columns):
            line = simd.emit_load(builder, builder.add(here, builder.mul(column_bytes, I64(column))), shorts)
            pairs[0].append(builder.ashr(builder.shl(line, eight), eight))
            pairs[1].append(builder.ashr(line, eight))
        at = builder.add(weights, builder.mul(loop.index, I64(8)))
        for pair, lines in enumerate(pairs):
            for row, row_sums in enumerate(sums):
                weight = _splat_at(builder, builder.add(at, I64(_ROW_BYTES // 2 * row + 4 * pair)), I32)
                for line, total in zip(lines, row_sums, strict=True):
                    updated = dot_products.emit_dot16(builder, builder.load(total), builder.bitcast(line, V16I), weight)
                    builder.store(simd.emit_pin(builder, updated), total)
    for row, row_sums in enumerate(sums):
        scale = _splat_at(builder, builder.add(weight_scales, I64(4 * row)), F32)
        for column, total in enumerate(row_sums):
            offset = builder.add(builder.mul(out_bytes, I64(row)), I64(64 * column))
            value = builder.fmul(builder.sitofp(builder.load(total), V16F), scale)
            simd.emit_store(builder, builder.add(out, offset), value, 4)


@intrinsic
def _values_tile(
    typing, kind, values, column_bytes, positions, weights, weight_scales, prefetch_address, out, out_bytes
):
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        with builder.if_else(builder.icmp_signed("==", arguments[0], I64(KV_Q8))) as (if_q8, if_f32):
            with if_q8:
                _emit_q8_values(builder, arguments[1:])
            with if_f32:
                _emit_f32_values(builder, arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), generate


@standalone(types.void(*[types.int64] * 10))
def score_rows(kind, keys, key_scales, head_dim, positions, x, x8, x_scales, x_corrections, scores):
    """Compute the scores of eight rows against some keys.

    Args:
        kind: kind of the cache.
        keys: address of the first key; a multiple of 16 positions.
        key_scales: address of its scales.
        head_dim: a multiple of 32.
        positions: number of keys, a multiple of 32.
        x: (8, head_dim) f32, read for an f32 cache.
        x8: (8, head_dim) i8, read for an 8-bit cache, like the arguments up to `x_corrections`.
        x_scales: (8, head_dim/32) f32.
        x_corrections: (8, head_dim/32) i32, -128 times the sum of each block of `x8`.
        scores: (8, SPLIT_POSITIONS) f32, of which the first `positions` columns are written.
    """
    rows, tiles = _SCORE_TILE
    blocks = head_dim // 32
    key_bytes = head_dim * (16 if kind == KV_Q8 else 64)
    for tile in range(0, positions // 16, tiles):
        for row in range(0, ATTENTION_ROWS, rows):
            _scores_tile(
                kind,
                keys + tile * key_bytes,
                key_scales + tile * blocks * 32,
                head_dim,
                x + row * head_dim * 4,
                x8 + row * head_dim,
                x_scales + row * blocks * 4,
                x_corrections + row * blocks * 4,
                scores + row * _ROW_BYTES + tile * 64,
            )


@standalone(types.void(*[types.int64] * 9))
def weigh_rows(kind, values, column_bytes, positions, weights, weight_scales, prefetch_address, out, out_bytes):
    """Compute the weighted sums of 32 dimensions of the values, for eight rows.

    Args:
        kind: kind of the cache.
        values: address of the first value's part of the 32 dimensions.
        column_bytes: bytes from one column of 16 dimensions to the next.
        positions: number of values, a multiple of 4.
        weights: (8, SPLIT_POSITIONS) f32, or i16 for an 8-bit cache.
        weight_scales: (8) f32, the size of a step of each row's i16 weights.
        prefetch_address: memory to prefetch meanwhile: as many bytes as 32 dimensions of `positions` keys take.
        out: (8, 32) f32, written.
        out_bytes: bytes from row to row of `out`.
    """
    row_bytes = _ROW_BYTES // 2 if kind == KV_Q8 else _ROW_BYTES
    rows, columns = _Q8_VALUE_TILE if kind == KV_Q8 else _F32_VALUE_TILE
    for row in range(0, ATTENTION_ROWS, rows):
        for column in range(0, 2, columns):
            _values_tile(
                kind,
                values + column * column_bytes,
                column_bytes,
                positions,
                weights + row * row_bytes,
                weight_scales + row * 4,
                prefetch_address,
                out + row * out_bytes + column * 64,
                out_bytes,
            )
