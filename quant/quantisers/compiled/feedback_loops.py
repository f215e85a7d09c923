"""Loops of the error feedback. Method and formulas: `quant.quantisers.feedback`."""

from __future__ import annotations

import numpy as np

from quant.formats.format import TILE_ROWS
from quant.native.backend import types
from quant.native.compiler import inlined
from quant.quantisers.compiled import products, triangular
from quant.quantisers.compiled.array_views import f32_at, f64_at, u8_at
from quant.quantisers.compiled.lane_steps import (
    BEST,
    INVERSE,
    LINE_BYTES,
    LINES,
    SCORE,
    UNIT,
    ZERO,
    integer_step,
    table_step,
)
from quant.quantisers.compiled.nearest_level import nearest_code, nearest_level
from quant.quantisers.compiled.unit import standalone
from quant.quantisers.feedback_grids import TABLE_ZERO

__all__ = ["products", "triangular"]


@inlined
def simulate(scratch, lines, size, factor, weights, table, lowest, highest):
    """Quantise a group of 16 rows with feedback inside the group, and sum the weighted squares.

    Args:
        scratch: address of the scratch memory: `LINES` lines, then three blocks (G, 16): targets, which change, targets
            to begin with, and weights. Unit and zero point of each row are set.
        lines: the scratch memory, (3 G + LINES, 16).
        size: columns of the group, G.
        factor: address of the shares (G, G), read above the diagonal.
        weights: (G,) f32.
        table: whether the grid is the codebook.
        lowest: smallest code of another grid.
        highest: largest code of another grid.
    """
    for lane in range(TILE_ROWS):
        unit = lines[UNIT, lane]
        lines[INVERSE, lane] = np.float32(1) / unit if unit != 0 else np.float32(0)
        lines[SCORE, lane] = np.float32(0)
        for k in range(size):
            lines[LINES + k, lane] = lines[LINES + size + k, lane]
    for k in range(size):
        work = scratch + LINE_BYTES * (LINES + k)
        group = work + LINE_BYTES * 2 * size
        shares = factor + 4 * (size * k + k + 1)
        if table:
            table_step(scratch, work, group, weights[k], shares, size - 1 - k, lowest, highest)
        else:
            integer_step(scratch, work, group, weights[k], shares, size - 1 - k, lowest, highest)


@standalone(types.void(*[types.int64] * 19))
def fb_group(
    targets,
    values,
    tiles,
    columns,
    start,
    size,
    factor,
    weights,
    units,
    zeros,
    candidates,
    table,
    lowest,
    highest,
    chosen,
    codes,
    errors,
    objectives,
    scratch,
):
    """Choose scale and zero point of one group of every row, and quantise it with feedback inside the group.

    All arrays are addresses.

    Args:
        targets: input, (16 tiles, K) f32.
        values: input, (16 tiles, K) f32: the weights themselves.
        tiles: number of tiles.
        columns: number of columns, K.
        start: first column of the group.
        size: columns of the group, G.
        factor: input, (G, G) f32: share of the error of one column that goes to another.
        weights: input, (G,) f32: weight of the squared distance from the target.
        units: input, (candidates, 16 tiles) f32: the step of each candidate.
        zeros: input, (candidates, 16 tiles) f32.
        candidates: number of candidates.
        table: 1 if the grid is the codebook of q4.
        lowest: smallest code.
        highest: largest code.
        chosen: output, (16 tiles,) u8: number of the candidate.
        codes: output, (16 tiles, G) u8.
        errors: output, (16 tiles, G) f32: weights minus values.
        objectives: input and output, (16 tiles,) f64: sum of the weighted squares.
        scratch: memory for (3 G + 5, 16) f32.
    """
    rows = TILE_ROWS * tiles
    targets, values = f32_at(targets, (rows, columns)), f32_at(values, (rows, columns))
    weights = f32_at(weights, (size,))
    units, zeros = f32_at(units, (candidates, rows)), f32_at(zeros, (candidates, rows))
    chosen, codes = u8_at(chosen, (rows,)), u8_at(codes, (rows, size))
    errors, objectives = f32_at(errors, (rows, size)), f64_at(objectives, (rows,))
    lines = f32_at(scratch, (3 * size + LINES, TILE_ROWS))
    work, aims, group = LINES, LINES + size, LINES + 2 * size
    low, high = np.float32(lowest), np.float32(highest)
    for tile in range(tiles):
        first = TILE_ROWS * tile
        for lane in range(TILE_ROWS):
            chosen[first + lane] = 0
            lines[BEST, lane] = np.float32(np.inf)
            for k in range(size):
                lines[aims + k, lane] = targets[first + lane, start + k]
                lines[group + k, lane] = values[first + lane, start + k]
        for candidate in range(candidates + 1):
            last = candidate == candidates
            for lane in range(TILE_ROWS):
                number = int(chosen[first + lane]) if last else candidate
                lines[UNIT, lane], lines[ZERO, lane] = units[number, first + lane], zeros[number, first + lane]
            simulate(scratch, lines, size, factor, weights, table, low, high)
            if not last:
                for lane in range(TILE_ROWS):
                    if lines[SCORE, lane] < lines[BEST, lane]:
                        lines[BEST, lane] = lines[SCORE, lane]
                        chosen[first + lane] = np.uint8(candidate)
        for lane in range(TILE_ROWS):
            objectives[first + lane] += np.float64(lines[SCORE, lane])
            unit, inverse, zero = lines[UNIT, lane], lines[INVERSE, lane], lines[ZERO, lane]
            for k in range(size):
                scaled = lines[work + k, lane] * inverse
                if table:
                    code = nearest_code(scaled - (TABLE_ZERO - zero))
                    level = nearest_level(scaled - (TABLE_ZERO - zero)) + (TABLE_ZERO - zero)
                else:
                    nearest = min(max(np.rint(scaled) + zero, low), high)
                    code, level = np.int32(nearest), nearest - zero
                codes[first + lane, k] = np.uint8(code)
                errors[first + lane, k] = lines[group + k, lane] - unit * level
