"""Targets of the error feedback where a quantised prefix has changed the inputs of a matrix.

With float inputs x and inputs y behind the quantised prefix, C = mean of x yᵀ and H = mean of y yᵀ, the weights that
reproduce the outputs of W best are W C H⁻¹. Damping keeps them near W: both C and H get the same addition to the
diagonal. With H = R Rᵀ, two triangular solutions follow the product W C.

With shares A and weights D of the factor, H = A D Aᵀ, so that a product and two triangular solutions give the targets:

    V Aᵀ = W C      X A = V D⁻¹
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.quantisers.feedback_factor import COLUMNS, Factor, add_product

F32 = NDArray[np.float32]
_DEPTH = 512
"""Columns that one product sums over; more would not fit the cache."""


def correct_targets(values: F32, factor: Factor) -> F32:
    """Return the weights (rows, K) that compensate for a quantised prefix; `values` itself where nothing changed it.

    The number of rows is a multiple of 4.
    """
    if factor.cross is None:
        return values
    corrected = np.float32(factor.damping) * values
    scaled = values * (factor.influence * np.float32(1 / factor.typical))
    offset = 0
    for cross, shares in zip(factor.cross, factor.shares, strict=True):
        place = slice(offset, offset + len(shares))
        influence = factor.influence[place]
        for start in range(0, len(shares), _DEPTH):
            stop = min(start + _DEPTH, len(shares))
            add_product(corrected[:, place], scaled[:, offset + start : offset + stop], cross[start:stop] * influence)
        _solve_transposed(corrected[:, place], shares)
        corrected[:, place] /= factor.weights[place]
        _solve(corrected[:, place], shares)
        offset += len(shares)
    return corrected


def _solve_transposed(values: F32, shares: F32) -> None:
    """Replace values (rows, b) by V with V Aᵀ = values, from the last column on."""
    for first in reversed(range(0, len(shares), COLUMNS)):
        last = min(first + COLUMNS, len(shares))
        for column in reversed(range(first + 1, last)):
            values[:, first:column] -= values[:, column : column + 1] * shares[first:column, column]
        if first:
            descending = slice(last - 1, first - 1, -1)
            panel = np.ascontiguousarray(-shares[:first, descending].T)
            add_product(values[:, :first], np.ascontiguousarray(values[:, descending]), panel)


def _solve(values: F32, shares: F32) -> None:
    """Replace values (rows, b) by X with X A = values, from the first column on."""
    for first in range(0, len(shares), COLUMNS):
        last = min(first + COLUMNS, len(shares))
        for column in range(first, last - 1):
            values[:, column + 1 : last] -= values[:, column : column + 1] * shares[column, column + 1 : last]
        if last < len(shares):
            negative = -values[:, first:last]
            add_product(values[:, last:], negative, shares[first:last, last:])
