"""Error feedback in plain NumPy: slow, easy to check, and bit for bit equal to the compiled loops.

Every element of a product is a float32 sum in ascending order, which the twin writes as one outer product per column.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quant.formats import FORMATS, GroupedFormat, PackedTensor, dequantise
from quant.quantisers import reference
from quant.quantisers.feedback_factor import COLUMNS, SAFE_PIVOT, Factor, damped, influence_of, typical_diagonal
from quant.quantisers.feedback_grids import TABLE_ZERO, Candidates, FeedbackGrid

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def factorise(blocks: Sequence[F32], damping: float, cross: Sequence[F32] | None = None) -> Factor:
    """Factor second moments like `quant.quantisers.feedback_factor.factorise`, with one damping."""
    typical = typical_diagonal(blocks)
    influence = influence_of(blocks)
    parts, offset = [], 0
    for block in blocks:
        part = influence[offset : offset + len(block)]
        parts.append(_factor_block(damped(block, part, typical, damping), damping))
        offset += len(block)
    weights = np.concatenate([weights for _, weights in parts])
    return Factor([shares for shares, _ in parts], weights, damping, typical, influence, cross)


def _factor_block(matrix: F32, damping: float) -> tuple[F32, F32]:
    size = len(matrix)
    for start in reversed(range(0, size, COLUMNS)):
        columns = slice(start, min(start + COLUMNS, size))
        corner = factor_corner(matrix[columns, columns], damping)
        panel = matrix[:start, columns].T.copy()
        for k in reversed(range(len(corner))):
            for m in range(k + 1, len(corner)):
                panel[k] -= corner[k, m] * panel[m]
            panel[k] /= corner[k, k]
        for k in range(len(corner)):
            matrix[:start, :start] += np.outer(-panel[k], panel[k])
        matrix[columns, columns] = corner
        matrix[:start, columns] = panel.T
    diagonal = matrix.diagonal().copy()
    return np.triu(matrix) * (np.float32(1) / diagonal), diagonal * diagonal


def factor_corner(block: F32, damping: float) -> F32:
    """Return R (b, b) f32, upper triangular, with R Rᵀ = block, computed in float64 from the last column on."""
    size = len(block)
    exact = np.zeros((size, size))
    for column in reversed(range(size)):
        for row in (column, *range(column)):
            total = np.float64(block[row, column])
            for k in range(column + 1, size):
                total -= exact[row, k] * exact[column, k]
            if row == column:
                assert total > SAFE_PIVOT * damping
                exact[column, column] = np.sqrt(total)
            else:
                exact[row, column] = total / exact[column, column]
    return exact.astype(np.float32)


def quantise(name: str, values: F32, group_size: int, factor: Factor) -> PackedTensor:
    """Quantise (rows, K) like `quant.quantisers.feedback.quantise`."""
    fmt = FORMATS[name]
    assert isinstance(fmt, GroupedFormat)
    aims = correct_targets(values, factor)
    plain, _ = reference.quantise(name, aims, group_size)
    exponents = np.frexp(np.abs(aims).max(axis=1))[1]
    scaled = np.ldexp(aims, -exponents[:, None])
    codes, scales, zeros, objectives = encode(FeedbackGrid(fmt, plain, exponents), scaled, group_size, factor)
    rest = scaled - np.ldexp(dequantise(plain), -exponents[:, None])
    better = (objectives < objective(rest, factor))[:, None]
    parts = fmt.plain_parts(plain)
    kept = {"zeros": np.where(better, zeros.astype(np.uint8), parts["zeros"])} if "zeros" in parts else {}
    if fmt.row_scales:
        kept["row_scales"] = parts["row_scales"]
    return fmt.pack(
        np.where(better, codes, parts["codes"]), np.where(better, scales, parts["scales"]), group_size, **kept
    )


def encode(
    grid: FeedbackGrid, values: F32, group_size: int, factor: Factor
) -> tuple[NDArray[np.uint8], NDArray[np.generic], F32, F64]:
    """Quantise values (rows, K) with feedback. Return codes (rows, K), scales and zeros (rows, groups), objectives."""
    targets, codes = values.copy(), np.empty(values.shape, np.uint8)
    objectives = np.zeros(len(values))
    scales, zeros = [], []
    offset = 0
    for shares in factor.shares:
        for start in range(0, len(shares), group_size):
            inside, place = slice(start, start + group_size), slice(offset + start, offset + start + group_size)
            tried = grid.candidates(targets[:, place])
            results = [
                _simulate(grid, tried, number, targets[:, place], values[:, place], shares[inside, inside],
                          factor.weights[place]) for number in range(len(tried.units))
            ]  # fmt: skip
            scores = np.stack([score for _, _, score in results])
            pick = scores.argmin(axis=0)
            rows = np.arange(len(values))
            codes[:, place] = np.stack([code for code, _, _ in results])[pick, rows]
            errors = np.stack([error for _, error, _ in results])[pick, rows]
            objectives += scores[pick, rows].astype(np.float64)
            scales.append(tried.stored[pick, rows])
            zeros.append(tried.zeros[pick, rows])
            for k in range(group_size):
                later = slice(offset + inside.stop, offset + len(shares))
                targets[:, later] += errors[:, k : k + 1] * shares[start + k, inside.stop :]
        offset += len(shares)
    return codes, np.stack(scales, axis=1), np.stack(zeros, axis=1), objectives


def _simulate(
    grid: FeedbackGrid, tried: Candidates, number: int, targets: F32, values: F32, shares: F32, weights: F32
) -> tuple[NDArray[np.uint8], F32, F32]:
    """Quantise one group (rows, G) with one candidate. Return codes and errors (rows, G) and the score (rows,)."""
    unit, zero = tried.units[number], tried.zeros[number]
    inverse = reference.divide(np.ones_like(unit), unit)
    work, codes = targets.copy(), np.empty(targets.shape, np.uint8)
    errors, score = np.empty_like(targets), np.zeros(len(targets), np.float32)
    for k in range(targets.shape[1]):
        if grid.table:
            offset = TABLE_ZERO - zero
            code = reference.q4_codes(work[:, k] * inverse - offset)
            centred = reference.q4_levels(work[:, k] * inverse - offset) + offset
        else:
            code = np.clip(np.rint(work[:, k] * inverse) + zero, grid.lowest, grid.highest)
            centred = (code - zero).astype(np.float32)
        value = unit * centred
        distance = work[:, k] - value
        score += weights[k] * (distance * distance)
        codes[:, k], errors[:, k] = code, values[:, k] - value
        work[:, k + 1 :] += errors[:, k : k + 1] * shares[k, k + 1 :]
    return codes, errors, score


def objective(errors: F32, factor: Factor) -> F64:
    """Return the weighted squared distances of each row of errors (rows, K), summed over the columns."""
    total = np.zeros(len(errors))
    offset = 0
    for shares in factor.shares:
        distance = errors[:, offset : offset + len(shares)].copy()
        for k in range(len(shares)):
            distance[:, k + 1 :] += errors[:, offset + k : offset + k + 1] * shares[k, k + 1 :]
        for first in range(0, len(shares), COLUMNS):
            exact = distance[:, first : first + COLUMNS].astype(np.float64)
            total += (exact * exact * factor.weights[offset + first : offset + first + exact.shape[1]]).sum(axis=1)
        offset += len(shares)
    return total


def correct_targets(values: F32, factor: Factor) -> F32:
    """Return the targets for a quantised prefix like `quant.quantisers.feedback_target.correct_targets`."""
    if factor.cross is None:
        return values
    corrected = np.float32(factor.damping) * values
    scaled = values * (factor.influence * np.float32(1 / factor.typical))
    offset = 0
    for cross, shares in zip(factor.cross, factor.shares, strict=True):
        block = corrected[:, offset : offset + len(shares)]
        for k, row in enumerate(cross):
            block += scaled[:, offset + k : offset + k + 1] * (row * factor.influence[offset : offset + len(shares)])
        for k in reversed(range(len(shares))):
            block[:, :k] -= block[:, k : k + 1] * shares[:k, k]
        block /= factor.weights[offset : offset + len(shares)]
        for k in range(len(shares)):
            block[:, k + 1 :] -= block[:, k : k + 1] * shares[k, k + 1 :]
        offset += len(shares)
    return corrected
