"""Loops that factor a matrix of second moments. Method and formulas: `quant.quantisers.feedback_factor`."""

from __future__ import annotations

import numpy as np

from quant.native.backend import types
from quant.quantisers.compiled.array_views import f32_at, f64_at
from quant.quantisers.compiled.unit import standalone


@standalone(types.void(*[types.int64] * 4))
def fb_factor_diagonal(block, size, scratch, status):
    """Factor block (size, size) f32 = R Rᵀ, R upper triangular, in place and in float64, from the last column on.

    All arrays are addresses.

    Args:
        block: input and output; below the diagonal it is neither read nor written.
        size: number of rows, B.
        scratch: memory for (B, B) f64.
        status: output, (1,) f64: the smallest square of a diagonal element; the loop stops if it is not positive.
    """
    values, exact, smallest = f32_at(block, (size, size)), f64_at(scratch, (size, size)), f64_at(status, (1,))
    smallest[0] = np.inf
    for column in range(size - 1, -1, -1):
        total = np.float64(values[column, column])
        for k in range(column + 1, size):
            total -= exact[column, k] * exact[column, k]
        smallest[0] = min(smallest[0], total)
        if not total > 0:
            smallest[0] = min(smallest[0], np.float64(0))
            return
        root = np.sqrt(total)
        exact[column, column] = root
        for row in range(column):
            total = np.float64(values[row, column])
            for k in range(column + 1, size):
                total -= exact[row, k] * exact[column, k]
            exact[row, column] = total / root
    for row in range(size):
        for column in range(row, size):
            values[row, column] = np.float32(exact[row, column])


@standalone(types.void(*[types.int64] * 5))
def fb_solve_panel(panel, stride, width, block, size):
    """Divide the transposed panel (size, width) f32 by Rᵀ from the right, in place: X with Rᵀ X = panel of H.

    Args:
        panel: input and output; row k belongs to column k of the block.
        stride: elements from one row of the panel to the next.
        width: number of columns.
        block: the factored diagonal block R, (size, size) f32.
        size: number of rows, B.
    """
    values = f32_at(block, (size, size))
    for k in range(size - 1, -1, -1):
        line = f32_at(panel + 4 * k * stride, (width,))
        for m in range(k + 1, size):
            other, factor = f32_at(panel + 4 * m * stride, (width,)), values[k, m]
            for i in range(width):
                line[i] -= factor * other[i]
        for i in range(width):
            line[i] /= values[k, k]
