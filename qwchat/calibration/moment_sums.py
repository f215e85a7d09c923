"""Sums of second moments, in blocks that fit in memory.

Each product multiplies ROWS tokens, and ROWS is less than what a BLAS multiplies in one go: it then sums the tokens in
one order, whatever the number of its threads. The sums of these products are in float32: with 16,384 tokens their
relative rounding error is below 1e-6.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from quant.calibration import block_sizes

Rows = NDArray[np.float32]

ROWS = 256
_PANEL = 1024  # rows of a sum that one product adds to


class MomentSums:
    """Sums of x xᵀ over tokens, and of y xᵀ for the inputs y of the same tokens in another model.

    Args:
        columns: number of columns K of the input.
        with_cross: whether to sum y xᵀ too.
    """

    def __init__(self, columns: int, *, with_cross: bool = False) -> None:
        sizes = block_sizes(columns)
        starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        self._ranges = list(pairwise(starts))
        self._sums = [np.zeros((size, size), np.float32) for size in sizes]
        self._cross = [np.zeros((size, size), np.float32) for size in sizes] if with_cross else []
        self._x = np.zeros((ROWS, columns), np.float32)
        self._y = np.zeros((ROWS, columns if with_cross else 0), np.float32)
        self._filled = 0
        self.samples = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all sums and buffers."""
        return sum(each.nbytes for each in (*self._sums, *self._cross, self._x, self._y))

    def add(self, x: Rows, y: Rows | None = None) -> None:
        """Add some tokens.

        Args:
            x: their inputs, (tokens, K) f32.
            y: their inputs in the other model, if these are summed.
        """
        start = 0
        while start < len(x):
            count = min(ROWS - self._filled, len(x) - start)
            self._x[self._filled : self._filled + count] = x[start : start + count]
            if y is not None:
                self._y[self._filled : self._filled + count] = y[start : start + count]
            self._filled += count
            start += count
            if self._filled == ROWS:
                self._multiply()
        self.samples += len(x)

    def means(self) -> list[Rows]:
        """Return the means of x xᵀ, symmetric blocks (b, b) f32. Nothing can be added afterwards."""
        self._multiply()
        for block in self._sums:
            block /= np.float32(self.samples)
            for start in range(0, len(block), _PANEL):
                stop = start + _PANEL
                block[:start, start:stop] = block[start:stop, :start].T
                corner = block[start:stop, start:stop]
                corner[:] = np.tril(corner) + np.tril(corner, -1).T
        return self._sums

    def cross_means(self) -> list[Rows]:
        """Return the means of y xᵀ, blocks (b, b) f32. Nothing can be added afterwards."""
        self._multiply()
        for block in self._cross:
            block /= np.float32(self.samples)
        return self._cross

    def _multiply(self) -> None:
        """Add the products of the rows in the buffers; rows that are not filled are zero."""
        if not self._filled:
            return
        self._x[self._filled :] = 0
        self._y[self._filled :] = 0
        for number, (first, last) in enumerate(self._ranges):
            x = self._x[:, first:last]
            for start in range(0, last - first, _PANEL):
                stop = start + _PANEL
                # The sum is symmetric: only what is below the diagonal is needed.
                self._sums[number][start:stop, :stop] += x[:, start:stop].T @ x[:, :stop]
                if self._cross:
                    self._cross[number][start:stop] += self._y[:, first:last][:, start:stop].T @ x
        self._filled = 0


def moment_bytes(columns: int, *, with_cross: bool = False) -> int:
    """Return the bytes of a `MomentSums` without allocating it."""
    blocks = sum(size * size for size in block_sizes(columns))
    return 4 * (blocks + ROWS * columns) * (1 + with_cross)
