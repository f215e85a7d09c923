"""Vector code of the error feedback: one column of a group of 16 rows, as LLVM vectors of 16 lanes.

LLVM does not vectorise the same loops by itself, since it cannot tell that their lines of scratch memory are disjoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from quant.formats.format import TILE_ROWS
from quant.native.backend import cgutils, intrinsic, ir, types
from quant.quantisers.feedback_grids import TABLE_ZERO
from quant.quantisers.q4 import LOWEST, MIDPOINTS, STEPS

UNIT, INVERSE, ZERO, SCORE, BEST, LINES = range(6)
"""Lines of 16 f32 at the beginning of the scratch memory, and their number."""
LINE_BYTES = 4 * TILE_ROWS
_SCALAR = ir.FloatType()
_VECTOR = ir.VectorType(_SCALAR, TILE_ROWS)
_ARGUMENTS = (
    types.int64,
    types.int64,
    types.int64,
    types.float32,
    types.int64,
    types.int64,
    types.float32,
    types.float32,
)


def _constant(number: np.float32 | float) -> Any:
    return ir.Constant(_VECTOR, [float(number)] * TILE_ROWS)


def _load(builder: Any, address: Any, kind: Any = _VECTOR) -> Any:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 4
    return value


def _store(builder: Any, address: Any, value: Any) -> None:
    builder.store(value, builder.inttoptr(address, _VECTOR.as_pointer())).align = 4


def _spread(builder: Any, value: Any) -> Any:
    """Return a vector with `value` in every lane."""
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    mask = ir.Constant(ir.VectorType(ir.IntType(32), TILE_ROWS), [0] * TILE_ROWS)
    return builder.shuffle_vector(builder.insert_element(undefined, value, ir.IntType(32)(0)), undefined, mask)


def _centred_entry(builder: Any, scaled: Any, zero: Any, lowest: Any, highest: Any) -> Any:
    """Return the nearest entry of the codebook plus its offset."""
    offset = builder.fsub(_constant(TABLE_ZERO), zero)
    shifted, level = builder.fsub(scaled, offset), _constant(LOWEST)
    for midpoint, step in zip(MIDPOINTS, STEPS, strict=True):
        above = builder.fcmp_ordered(">", shifted, _constant(midpoint))
        level = builder.fadd(level, builder.select(above, _constant(step), _constant(0)))
    return builder.fadd(level, offset)


def _centred_code(builder: Any, scaled: Any, zero: Any, lowest: Any, highest: Any) -> Any:
    """Return the nearest integer code minus the zero point."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR])
    rint = cgutils.get_or_insert_function(builder.module, kind, f"llvm.rint.v{TILE_ROWS}f32")
    code = builder.fadd(builder.call(rint, [scaled]), zero)
    low, high = _spread(builder, lowest), _spread(builder, highest)
    code = builder.select(builder.fcmp_ordered("<", code, low), low, code)
    code = builder.select(builder.fcmp_ordered(">", code, high), high, code)
    return builder.fsub(code, zero)


def _column_step(centred: Callable[..., Any]) -> Callable[..., Any]:
    """Return an intrinsic that quantises one column and adds the shares of its error to the later columns."""

    @intrinsic
    def step(
        typing: Any, lines: Any, work: Any, weights: Any, weight: Any, shares: Any, later: Any, low: Any, high: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            lines, work, weights, weight, shares, later, low, high = values
            number = ir.IntType(64)

            def line(index: int) -> Any:
                return builder.add(lines, number(index * LINE_BYTES))

            x, unit, zero = _load(builder, work), _load(builder, line(UNIT)), _load(builder, line(ZERO))
            scaled = builder.fmul(x, _load(builder, line(INVERSE)))
            value = builder.fmul(unit, centred(builder, scaled, zero, low, high))
            distance = builder.fsub(x, value)
            square = builder.fmul(_spread(builder, weight), builder.fmul(distance, distance))
            _store(builder, line(SCORE), builder.fadd(_load(builder, line(SCORE)), square))
            error = builder.fsub(_load(builder, weights), value)
            first = builder.add(work, number(LINE_BYTES))
            with cgutils.for_range(builder, later) as loop:
                target = builder.add(first, builder.mul(loop.index, number(LINE_BYTES)))
                share = _load(builder, builder.add(shares, builder.mul(loop.index, number(4))), _SCALAR)
                taken = builder.fmul(error, _spread(builder, share))
                _store(builder, target, builder.fadd(_load(builder, target), taken))
            return context.get_dummy_value()

        return types.void(*_ARGUMENTS), generate

    return step


table_step, integer_step = _column_step(_centred_entry), _column_step(_centred_code)
