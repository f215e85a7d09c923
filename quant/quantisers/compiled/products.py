"""Matrix products in float32 whose every element is a sum in ascending order, without fused operations.

The results are therefore those of the plain formula on every machine, whatever its vectors and its number of threads.
"""

from __future__ import annotations

from typing import Any

from quant.native.backend import cgutils, intrinsic, ir, types
from quant.quantisers.compiled.array_views import f32_at
from quant.quantisers.compiled.unit import standalone

ROWS, WIDTH = 4, 32
"""Rows and columns of one step; the accumulators fill eight registers of 16 values."""
_LANES = 16
_VECTOR = ir.VectorType(ir.FloatType(), _LANES)


@intrinsic
def _add_tile(typing: Any, target: Any, target_stride: Any, left: Any, left_stride: Any, right: Any, depth: Any) -> Any:
    """Add left (4, depth) times right (depth, 32) to target (4, 32). Addresses; strides in bytes; `right` is packed."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        target, target_stride, left, left_stride, right, depth = values
        vectors = WIDTH // _LANES
        number = ir.IntType(64)

        def pointer(address: Any, kind: Any) -> Any:
            return builder.inttoptr(address, kind.as_pointer())

        def load(address: Any, kind: Any) -> Any:
            value = builder.load(pointer(address, kind))
            value.align = 4
            return value

        places = [
            builder.add(builder.add(target, builder.mul(target_stride, number(row))), number(4 * _LANES * vector))
            for row in range(ROWS)
            for vector in range(vectors)
        ]
        sums = [cgutils.alloca_once_value(builder, load(place, _VECTOR)) for place in places]
        starts = [builder.add(left, builder.mul(left_stride, number(row))) for row in range(ROWS)]
        with cgutils.for_range(builder, depth) as loop:
            line = builder.add(right, builder.mul(loop.index, number(4 * WIDTH)))
            columns = [load(builder.add(line, number(4 * _LANES * vector)), _VECTOR) for vector in range(vectors)]
            for row, start in enumerate(starts):
                factor = load(builder.add(start, builder.mul(loop.index, number(4))), ir.FloatType())
                first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), factor, ir.IntType(32)(0))
                mask = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)
                spread = builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), mask)
                for vector, column in enumerate(columns):
                    total = sums[row * vectors + vector]
                    builder.store(builder.fadd(builder.load(total), builder.fmul(spread, column)), total)
        for place, total in zip(places, sums, strict=True):
            builder.store(builder.load(total), pointer(place, _VECTOR)).align = 4
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate


@standalone(types.void(*[types.int64] * 10))
def fb_accumulate(target, target_stride, left, left_stride, right, right_stride, rows, columns, depth, scratch):
    """Add left (rows, depth) times right (depth, columns) to target (rows, columns), in ascending order of the depth.

    All arrays are addresses of f32; strides count elements. Rows are a multiple of 4, columns a multiple of 32.

    Args:
        target: input and output.
        target_stride: elements from one row of the target to the next.
        left: input.
        left_stride: elements from one row of `left` to the next.
        right: input.
        right_stride: elements from one row of `right` to the next.
        rows: number of rows.
        columns: number of columns.
        depth: number of products in each sum.
        scratch: memory for (depth, 32) f32.
    """
    packed = f32_at(scratch, (depth, WIDTH))
    for start in range(0, columns, WIDTH):
        for k in range(depth):
            line = f32_at(right + 4 * (k * right_stride + start), (WIDTH,))
            for lane in range(WIDTH):
                packed[k, lane] = line[lane]
        for row in range(0, rows, ROWS):
            place = target + 4 * (row * target_stride + start)
            _add_tile(place, 4 * target_stride, left + 4 * row * left_stride, 4 * left_stride, scratch, depth)
