"""Factor of the second moments of the inputs of a matrix, which the error feedback spreads errors by.

With H = mean of x xᵀ, divided by its typical diagonal and damped, and R upper triangular,

    H = R Rᵀ
    (w - q) H (w - q)ᵀ = sum over columns j of R_jj² (t_j - q_j)²
    t_j = w_j + sum over i < j of (w_i - q_i) R_ij / R_jj

The factor holds the shares R_ij / R_jj and the weights R_jj². It is computed in blocks of columns, from the last one
on: the diagonal block in float64, the panel above it and the update of what remains in float32. No element depends on
the number of threads. `quant.quantisers.feedback_reference` does the same in plain NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from quant.quantisers.machine_code import CompiledLoops, compiled_functions

F32 = NDArray[np.float32]
LOOPS = CompiledLoops(
    "quant.quantisers.compiled.feedback_loops",
    {"fb_accumulate": 10, "fb_factor_diagonal": 4, "fb_solve_panel": 5, "fb_group": 19},
    cost=1.5,
)
DAMPINGS = (0.01, 0.1, 1.0, 10.0)
"""Shares of the typical diagonal that are added to it, until the matrix is safely positive definite."""
OUTLIER_RATIO = 10
"""Diagonal elements above this multiple of the median count as the multiple in the typical diagonal."""
INFLUENCE_LIMIT = 10_000
"""Inputs whose mean square exceeds this multiple of the median are scaled down to it.

Single inputs of Qwen2's `down_proj` are huge, for few tokens. The mean squared error of the outputs would be that of
those tokens alone, and feedback would spoil all others for them.
"""
SAFE_PIVOT = 0.1
"""A pivot below this share of the damping is a rounding error."""
COLUMNS = 128
"""Columns of a block."""
_STRIPE = 256
_PACKED_WIDTH = 32


@dataclass(frozen=True, eq=False)
class Factor:
    """Factor of the second moments, by blocks of columns.

    Attributes:
        shares: per block, (b, b) f32; element (i, j), i < j, is the share of the error of column i that column j takes.
        weights: (K,) f32, weight of the squared distance of each column from its target.
        damping: share of the typical diagonal that was added.
        typical: typical diagonal, which the moments were divided by.
        influence: (K,) f32, factor of each input.
        cross: per block, (b, b) f32: mean products of the inputs before and behind a quantised prefix, or None.
    """

    shares: Sequence[F32]
    weights: F32
    damping: float
    typical: float
    influence: F32
    cross: Sequence[F32] | None = None


def typical_diagonal(blocks: Sequence[F32]) -> float:
    """Return the mean of the diagonal, outliers counted as ten times the median of the positive elements. Or 0."""
    diagonal = np.concatenate([block.diagonal() for block in blocks]).astype(np.float64)
    positive = diagonal[diagonal > 0]
    if not positive.size:
        return 0.0
    return float(np.minimum(diagonal, OUTLIER_RATIO * np.median(positive)).mean())


def factorise(blocks: Sequence[F32], cross: Sequence[F32] | None = None, threads: int = 1) -> Factor | None:
    """Factor the second moments of some inputs.

    Args:
        blocks: square matrices (b, b) along the diagonal, finite; only the upper triangles are read.
        cross: see `Factor`.
        threads: number of threads to use.

    Returns:
        The factor, or None if the moments are zero, or not positive definite with any damping.
    """
    typical = typical_diagonal(blocks)
    if not typical > 0:
        return None
    influence, ends = influence_of(blocks), np.cumsum([len(block) for block in blocks])
    influences = np.split(influence, ends[:-1])
    with ThreadPoolExecutor(threads, thread_name_prefix="factor") as pool:
        for damping in DAMPINGS:
            parts = [
                _factor_block(damped(block, part, typical, damping), damping, pool)
                for block, part in zip(blocks, influences, strict=True)
            ]
            kept = [part for part in parts if part is not None]
            if len(kept) == len(parts):
                weights = np.concatenate([weights for _, weights in kept])
                return Factor([shares for shares, _ in kept], weights, damping, typical, influence, cross)
    return None


def influence_of(blocks: Sequence[F32]) -> F32:
    """Return the factor (K,) of each input that keeps its mean square within `INFLUENCE_LIMIT` medians."""
    diagonal = np.concatenate([block.diagonal() for block in blocks]).astype(np.float64)
    limit = INFLUENCE_LIMIT * np.median(diagonal[diagonal > 0])
    factors: F32 = np.sqrt(np.minimum(1, limit / np.maximum(diagonal, limit))).astype(np.float32)
    return factors


def damped(block: F32, influence: F32, typical: float, damping: float) -> F32:
    """Return the upper triangle of block / typical + damping, (b, b), with each input times its influence (b,).

    Below the diagonal, the values are undefined.
    """
    size = len(block)
    matrix = np.empty((size, size), np.float32)
    scale = np.float32(1 / typical)
    for start in range(0, size, COLUMNS):
        rows = slice(start, start + COLUMNS)
        np.multiply(block[rows, start:], influence[rows, None] * scale, out=matrix[rows, start:])
        matrix[rows, start:] *= influence[start:]
    diagonal = np.arange(size)
    matrix[diagonal, diagonal] += np.float32(damping)
    return matrix


def _factor_block(matrix: F32, damping: float, pool: Executor) -> tuple[F32, F32] | None:
    """Factor a damped block in place. Return shares (b, b) and weights (b,), or None if it is not positive definite."""
    _, factor_diagonal, _, _ = compiled_functions(LOOPS)
    size = len(matrix)
    exact, status = np.empty((COLUMNS, COLUMNS), np.float64), np.empty(1, np.float64)
    for start in reversed(range(0, size, COLUMNS)):
        columns = slice(start, min(start + COLUMNS, size))
        corner = np.ascontiguousarray(matrix[columns, columns])
        factor_diagonal(corner.ctypes.data, len(corner), exact.ctypes.data, status.ctypes.data)
        if not status[0] > SAFE_PIVOT * damping:
            return None
        matrix[columns, columns] = corner
        panel = np.ascontiguousarray(matrix[:start, columns].T)
        negative = np.empty((start, len(corner)), np.float32)
        stripes = range(0, start, _STRIPE)
        list(pool.map(partial(_solve, panel, negative, corner), stripes))
        list(pool.map(partial(_update, matrix, panel, negative), stripes))
        matrix[:start, columns] = panel.T
    diagonal = matrix.diagonal().copy()
    inverse = np.float32(1) / diagonal
    for start in range(0, size, COLUMNS):
        matrix[start : start + COLUMNS, start:] *= inverse[start:]
    return matrix, diagonal * diagonal


def _solve(panel: F32, negative: F32, corner: F32, first: int) -> None:
    """Divide some columns of the transposed panel (B, n) by the corner (B, B). Write minus the result to `negative`."""
    _, _, solve_panel, _ = compiled_functions(LOOPS)
    width = min(_STRIPE, panel.shape[1] - first)
    solve_panel(panel.ctypes.data + 4 * first, panel.shape[1], width, corner.ctypes.data, len(corner))
    negative[first : first + width] = -panel[:, first : first + width].T


def _update(matrix: F32, panel: F32, negative: F32, first: int) -> None:
    """Add negative (n, B) times panel (B, n) to some rows of the matrix, from the diagonal on."""
    end = panel.shape[1]
    rows = slice(first, min(first + _STRIPE, end))
    add_product(matrix[rows, first:end], negative[rows], panel[:, first:end])


def add_product(target: F32, left: F32, right: F32) -> None:
    """Add left (m, d) times right (d, n) to target (m, n), in ascending order of d.

    The rows of each array are contiguous; m is a multiple of 4 and n one of 32.
    """
    accumulate, *_ = compiled_functions(LOOPS)
    rows, depth = left.shape
    scratch = np.empty((depth, _PACKED_WIDTH), np.float32)
    arrays = [(array.ctypes.data, array.strides[0] // array.itemsize) for array in (target, left, right)]
    accumulate(*(number for pair in arrays for number in pair), rows, right.shape[1], depth, scratch.ctypes.data)
