"""Error feedback (GPTQ) on the grids of the integer formats: later columns compensate for the errors of earlier ones.

Columns are quantised in order. The target of a column is its weight plus shares of the errors of all earlier columns
(`quant.quantisers.feedback_factor`), so that the sum of weighted squared distances from the targets is the mean squared
error of the outputs on the calibration inputs. On entering a group, the feedback inside it is simulated for every
candidate scale and zero point, and the best one is kept. Row scales are those of the plain encoding.

A row keeps its plain encoding unless feedback reduces the same objective. The sum over the columns of the plain error
ends as soon as it exceeds the sum of the feedback.

Rows are independent of each other. Each is divided by a power of two, which keeps squares within float32.
`quant.quantisers.feedback_reference` does the same in plain NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import FormatError
from quant.formats import Format, GroupedFormat, PackedTensor, dequantise, find_format
from quant.formats.format import TILE_ROWS
from quant.quantisers.feedback_factor import COLUMNS, LOOPS, Factor, add_product
from quant.quantisers.feedback_grids import Candidates, FeedbackGrid
from quant.quantisers.feedback_target import correct_targets
from quant.quantisers.machine_code import compiled_functions
from quant.quantisers.padding import padded_rows
from quant.quantisers.registry import quantiser_of

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
_SCRATCH_LINES = 5
_DEPTH = 512
"""Columns that one product sums over; more would not fit the cache."""


def supports(fmt: Format) -> bool:
    """Return whether a format can be quantised with feedback: codes in groups that come from float values."""
    return isinstance(fmt, GroupedFormat) and fmt.quantiser is not None


def quantise(name: str, values: F32, group_size: int, factor: Factor) -> tuple[PackedTensor, F64]:
    """Quantise finite values (rows, K) with error feedback.

    Args:
        name: name of the format, which `supports` accepts.
        values: (rows, K), at most 1e30.
        group_size: weights per scale, at most 128.
        factor: factor of the inputs of the matrix.

    Returns:
        The packed rows, and the squared error of each row, (rows,).

    Raises:
        FormatError: the format cannot represent the values, or the factor does not fit the columns or groups.
    """
    fmt = find_format(name)
    assert isinstance(fmt, GroupedFormat)
    check_factor(factor, values.shape[1], group_size)
    aims = correct_targets(padded_rows(values), factor)
    plain: PackedTensor = quantiser_of(name).quantise(fmt, aims, group_size)[0]
    exponents = np.frexp(np.abs(aims).max(axis=1))[1]
    scaled = np.ldexp(aims, -exponents[:, None])
    encoder = FeedbackRows(FeedbackGrid(fmt, plain, exponents), scaled, group_size, factor)
    encoder.run()
    rest = scaled - np.ldexp(dequantise(plain), -exponents[:, None])
    better = encoder.objectives < bounded_objectives(rest, factor, encoder.objectives)
    packed = merged(fmt, plain, encoder, better, len(values))
    distance = (values - dequantise(packed)).astype(np.float64)
    return packed, (distance * distance).sum(axis=1)


def check_factor(factor: Factor, columns: int, group_size: int) -> None:
    """Raise FormatError unless the blocks of the factor cover the columns and end between groups."""
    sizes = [len(block) for block in factor.shares]
    if sum(sizes) != columns:
        raise FormatError(f"the statistics have {sum(sizes)} inputs and the matrix {columns}")
    if any(size % group_size for size in sizes):
        raise FormatError(f"the statistics are in blocks of {max(sizes)}, which groups of {group_size} do not divide")


class FeedbackRows:
    """Rows that are being quantised with feedback.

    Args:
        grid: candidates of the format.
        values: (rows, K), magnitudes at most 1, a multiple of 16 rows.
        group_size: weights per scale, G.
        factor: factor of the inputs.

    Attributes:
        codes: (rows, K) u8.
        scales: per group, (rows,) as stored.
        zeros: per group, (rows,) f32.
        objectives: (rows,) f64, weighted squared distances.
    """

    def __init__(self, grid: FeedbackGrid, values: F32, group_size: int, factor: Factor) -> None:
        self._grid, self._values, self._group_size, self._factor = grid, values, group_size, factor
        self._targets, self._errors = values.copy(), np.zeros_like(values)
        rows = len(values)
        self.codes = np.empty(values.shape, np.uint8)
        self.scales: list[NDArray[Any]] = []
        self.zeros: list[F32] = []
        self.objectives = np.zeros(rows, np.float64)
        self._scratch = np.empty((3 * group_size + _SCRATCH_LINES, TILE_ROWS), np.float32)
        self._chosen = np.empty(rows, np.uint8)
        self._group_codes = np.empty((rows, group_size), np.uint8)
        self._group_errors = np.empty((rows, group_size), np.float32)

    def run(self) -> None:
        """Quantise all columns."""
        for offset, shares in _blocks(self._factor):
            for first in range(0, len(shares), COLUMNS):
                last = min(first + COLUMNS, len(shares))
                for start in range(first, last, self._group_size):
                    self._encode_group(shares, offset, start)
                    self._feed_back(shares, offset, slice(start, start + self._group_size), last)
                self._feed_back(shares, offset, slice(first, last), len(shares))

    def _encode_group(self, shares: F32, offset: int, start: int) -> None:
        """Quantise the group that begins at column `start` of a block, which begins at column `offset`."""
        *_, encode = compiled_functions(LOOPS)
        size, place = self._group_size, slice(offset + start, offset + start + self._group_size)
        tried: Candidates = self._grid.candidates(self._targets[:, place])
        inside = np.ascontiguousarray(shares[start : start + size, start : start + size])
        weights = np.ascontiguousarray(self._factor.weights[place])
        rows, columns = self._values.shape
        arrays = (self._chosen, self._group_codes, self._group_errors, self.objectives, self._scratch)
        encode(
            self._targets.ctypes.data, self._values.ctypes.data, rows // TILE_ROWS, columns, offset + start, size,
            inside.ctypes.data, weights.ctypes.data, tried.units.ctypes.data, tried.zeros.ctypes.data, len(tried.units),
            int(self._grid.table), self._grid.lowest, self._grid.highest,
            *(array.ctypes.data for array in arrays),
        )  # fmt: skip
        self.codes[:, place] = self._group_codes
        self._errors[:, place] = self._group_errors
        pick = self._chosen.astype(np.intp)[None]
        self.scales.append(np.take_along_axis(tried.stored, pick, axis=0)[0])
        self.zeros.append(np.take_along_axis(tried.zeros, pick, axis=0)[0])

    def _feed_back(self, shares: F32, offset: int, done: slice, end: int) -> None:
        """Add the shares of the errors of columns `done` to the targets of the columns from there to `end`."""
        if done.stop < end:
            later = self._targets[:, offset + done.stop : offset + end]
            errors = self._errors[:, offset + done.start : offset + done.stop]
            add_product(later, errors, shares[done, done.stop : end])


def bounded_objectives(errors: F32, factor: Factor, bounds: F64) -> F64:
    """Return the objective of each row of errors (rows, K), or a part of it that exceeds its bound.

    Rows that have exceeded their bound are left out once they are half of the rest.
    """
    totals = np.zeros(len(errors), np.float64)
    active = np.arange(len(errors))
    for offset, shares in _blocks(factor):
        for first in range(0, len(shares), COLUMNS):
            last = min(first + COLUMNS, len(shares))
            distance = errors[:, offset + first : offset + last].copy()
            for start in range(0, first, _DEPTH):
                stop = min(start + _DEPTH, first)
                add_product(distance, errors[:, offset + start : offset + stop], shares[start:stop, first:last])
            inside = np.triu(shares[first:last, first:last], 1)
            add_product(distance, errors[:, offset + first : offset + last], inside)
            exact = distance.astype(np.float64)
            totals[active] += (exact * exact * factor.weights[offset + first : offset + last]).sum(axis=1)
            open_rows = totals[active] <= bounds[active]
            if not open_rows.any():
                return totals
            if 2 * open_rows.sum() <= len(active):
                active, errors = _select(active, errors, open_rows)
    return totals


def _blocks(factor: Factor) -> Iterator[tuple[int, F32]]:
    """Yield the first column and the shares of each block."""
    offset = 0
    for shares in factor.shares:
        yield offset, shares
        offset += len(shares)


def _select(active: NDArray[np.intp], errors: F32, open_rows: NDArray[np.bool_]) -> tuple[NDArray[np.intp], F32]:
    """Keep the open rows, and as many others as make a multiple of 4."""
    order = np.argsort(~open_rows, kind="stable")
    kept = order[: -(-int(open_rows.sum()) // 4) * 4]
    return active[kept], errors[kept]


def merged(
    fmt: GroupedFormat, plain: PackedTensor, encoder: FeedbackRows, better: NDArray[np.bool_], rows: int
) -> PackedTensor:
    """Pack the first `rows` rows: those of the encoder where it is better, those of the plain encoding elsewhere."""
    parts = fmt.plain_parts(plain)
    made: dict[str, NDArray[Any]] = {"codes": encoder.codes, "scales": np.stack(encoder.scales, axis=1)}
    if "zeros" in parts:
        made["zeros"] = np.stack(encoder.zeros, axis=1).astype(np.uint8)
    chosen = {name: np.where(better[:, None], part, parts[name])[:rows] for name, part in made.items()}
    if fmt.row_scales:
        chosen["row_scales"] = parts["row_scales"][:rows]
    return fmt.pack(chosen.pop("codes"), chosen.pop("scales"), plain.group_size, **chosen)
