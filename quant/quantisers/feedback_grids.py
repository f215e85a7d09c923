"""Grids of the error feedback: the scales and zero points that are tried for a group, and how they are stored.

A candidate is a step and a zero point: value = step * (level - zero). Every candidate of a group is simulated, so that
the search needs no least squares. Steps are multiples of the row scale of the plain encoding where a format has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats import GroupedFormat, IntegerFormat, PackedTensor, q4
from quant.quantisers import linear
from quant.quantisers.q4 import FACTORS, HIGHEST, LOWEST, SHIFT

F32 = NDArray[np.float32]
TABLE_ZERO = np.float32(128)
"""Level of the entry 0 of q4's codebook."""
_FINE = tuple(np.float32(0.97 + 0.01 * step) for step in range(7))
_COARSE = tuple(np.float32(0.80 + 0.05 * step) for step in range(6))
_FINE_BITS = 8


@dataclass(frozen=True)
class Candidates:
    """Steps and zero points to try for one group of each row.

    Attributes:
        units: (candidates, rows) f32, the step of each row, in units of 2 ** exponent of the row.
        zeros: (candidates, rows) f32.
        stored: (candidates, rows), the group scale as the format stores it.
    """

    units: F32
    zeros: F32
    stored: NDArray[Any]


class FeedbackGrid:
    """Candidates of one format for the rows of a chunk.

    Args:
        fmt: record of the format.
        plain: the plain encoding of the rows; its row scales are kept.
        exponents: (rows,) powers of two that the values were divided by.
    """

    def __init__(self, fmt: GroupedFormat, plain: PackedTensor, exponents: NDArray[np.int32]) -> None:
        self._fmt, self._exponents = fmt, exponents
        self.table = fmt.table is not None
        self.highest = fmt.largest_code
        self._signed = fmt.scale == "int8"
        self.lowest = 0 if fmt.stores_zeros or self._signed else 2 * fmt.zero - self.highest
        if fmt.row_scales:
            self._row_scales = np.ldexp(fmt.row_scales_of(plain), -exponents)

    def candidates(self, group: F32) -> Candidates:
        """Return the candidates for one group (rows, G) of targets."""
        if self.table:
            return self._of_codebook(group)
        return self._of_row_scales(group) if self._fmt.row_scales else self._of_spans(group)

    def _of_codebook(self, group: F32) -> Candidates:
        """Map the largest weight to either end of either table, times a factor, and round the scale."""
        peak = _largest(group)
        ratio = _divide(peak, self._row_scales)
        tried = [(SHIFT * bit, bit, end, factor) for bit in (0, 1) for end in (LOWEST, HIGHEST) for factor in FACTORS]
        whole = np.stack([np.rint(ratio / ((end + offset) * factor)) for offset, _, end, factor in tried])
        whole = np.clip(whole, q4.SCALE_MIN, q4.SCALE_MAX).astype(np.float32)
        bits = np.array([bit for _, bit, _, _ in tried], np.int8)[:, None]
        zeros = np.broadcast_to(TABLE_ZERO - SHIFT * bits.astype(np.float32), whole.shape)
        return Candidates(self._row_scales * whole, zeros.copy(), 2 * whole.astype(np.int8) + bits)

    def _of_row_scales(self, group: F32) -> Candidates:
        """Map the largest weight to an end of the codes, times a factor, and round the scale to whole row scales.

        A signed scale maps it to either end, since the codes reach further below 0 than above.
        """
        factors = np.array(_FINE if self._fmt.bits == _FINE_BITS else _COARSE, np.float32)
        ratio = _divide(_largest(group), self._row_scales)
        top = np.float32(self.highest - self._fmt.zero)
        if self._signed:
            ends = np.concatenate([np.float32(self.lowest - self._fmt.zero) / factors, top / factors])
        else:
            ends, ratio = top / factors, np.abs(ratio)
        limits = np.iinfo(self._fmt.scale_dtype)
        whole = np.clip(np.rint(ratio / ends[:, None]), -limits.max if self._signed else 0, limits.max)
        zeros = np.full(whole.shape, self._fmt.zero, np.float32)
        return Candidates(self._row_scales * whole, zeros, whole.astype(self._fmt.scale_dtype))

    def _of_spans(self, group: F32) -> Candidates:
        """Divide the range of the group by the number of steps, times a factor, and round the step to float16."""
        assert isinstance(self._fmt, IntegerFormat)
        top, factors = np.float32(self.highest), np.array(linear.factors(self._fmt), np.float32)[:, None]
        low, high = np.minimum(group.min(axis=1), 0), np.maximum(group.max(axis=1), 0)
        if self._fmt.stores_zeros:
            steps = (high - low) * factors / top
            zeros = np.clip(np.rint(_divide(np.broadcast_to(-low, steps.shape), steps)), 0, top)
        else:
            steps = np.float32(2) * np.maximum(high, -low) * factors / (top - np.float32(1))
            zeros = np.full(steps.shape, self._fmt.zero, np.float32)
        stored = np.minimum(np.ldexp(steps, self._exponents), linear.MAX_F16).astype(np.float16)
        return Candidates(np.ldexp(stored.astype(np.float32), -self._exponents), zeros.astype(np.float32), stored)


def _largest(group: F32) -> F32:
    """Return the weight of largest magnitude of each row."""
    place = np.abs(group).argmax(axis=1)
    largest: F32 = np.take_along_axis(group, place[:, None], axis=1)[:, 0]
    return largest


def _divide(numerator: F32, denominator: F32) -> F32:
    """Return numerator / denominator, or 0 where the denominator is 0."""
    quotient: F32 = np.divide(numerator, denominator, out=np.zeros(numerator.shape, np.float32), where=denominator != 0)
    return quotient
