"""Loops of the linear formats such as lin4 and lin8. Method and formulas: `quant.quantisers.linear`."""

from __future__ import annotations

import numpy as np

from quant.formats.format import TILE_ROWS
from quant.native.backend import types
from quant.quantisers.compiled.array_views import f32_at, f64_at, u8_at
from quant.quantisers.compiled.unit import standalone
from quant.quantisers.linear import SCRATCH_LINES


@standalone(types.void(*[types.int64] * 12))
def lin_search(
    values, tiles, columns, group_size, highest, asymmetric, zero_point, factors, count, scales, zeros, scratch
):
    """Find the least-squares scale and the zero point of every group.

    All arrays are addresses.

    Args:
        values: input, (16 tiles, K) f32.
        tiles: number of tiles.
        columns: number of columns, K.
        group_size: weights per scale, G.
        highest: largest code.
        asymmetric: 1 to search a zero point per group, 0 to use `zero_point`.
        zero_point: default zero point.
        factors: input, (count,) f32.
        count: number of factors.
        scales: output, (tiles, K/G, 16) f32.
        zeros: output, (tiles, K/G, 16) u8.
        scratch: memory for one group and SCRATCH_LINES rows of 16 f32.
    """
    top, default_zero = np.float32(highest), np.float32(zero_point)
    values, factors = f32_at(values, (TILE_ROWS * tiles, columns)), f32_at(factors, (count,))
    scales = f32_at(scales, (tiles, columns // group_size, TILE_ROWS))
    zeros = u8_at(zeros, (tiles, columns // group_size, TILE_ROWS))
    block = f32_at(scratch, (group_size, TILE_ROWS))
    lanes = f32_at(scratch + group_size * TILE_ROWS * 4, (SCRATCH_LINES, TILE_ROWS))
    low, span, zero, inverse = lanes[0], lanes[1], lanes[2], lanes[3]
    best, products, squares = lanes[4], lanes[5], lanes[6]
    for tile in range(scales.shape[0]):
        for group in range(scales.shape[1]):
            for lane in range(TILE_ROWS):
                row = values[TILE_ROWS * tile + lane]
                least, most = np.float32(0), np.float32(0)
                for k in range(group_size):
                    x = row[group_size * group + k]
                    block[k, lane] = x
                    least, most = min(least, x), max(most, x)
                low[lane] = least
                span[lane] = most - least if asymmetric else np.float32(2) * max(most, -least)
                scales[tile, group, lane] = np.float32(0)
                zeros[tile, group, lane] = np.uint8(default_zero)
            best[:] = np.float32(0)
            for factor in factors:
                for lane in range(TILE_ROWS):
                    step = span[lane] * factor / (top if asymmetric else top - np.float32(1))
                    inverse[lane] = np.float32(1) / step if step > 0 else np.float32(0)
                    offset = np.rint(-low[lane] * inverse[lane]) if asymmetric else default_zero
                    zero[lane] = min(max(offset, np.float32(0)), top)
                products[:] = np.float32(0)
                squares[:] = np.float32(0)
                for k in range(group_size):
                    for lane in range(TILE_ROWS):
                        x = block[k, lane]
                        code = min(max(np.rint(x * inverse[lane]) + zero[lane], np.float32(0)), top)
                        level = code - zero[lane]
                        products[lane] += x * level
                        squares[lane] += level * level
                for lane in range(TILE_ROWS):
                    fit = products[lane] / squares[lane] if squares[lane] > 0 else np.float32(0)
                    score = products[lane] * fit
                    if score > best[lane]:
                        best[lane] = score
                        scales[tile, group, lane] = fit
                        zeros[tile, group, lane] = np.uint8(zero[lane])


@standalone(types.void(*[types.int64] * 10))
def lin_encode(values, tiles, columns, group_size, highest, scales, zeros, codes, errors, scratch):
    """Write codes u8 (tiles, K/4, 16, 4) for the rounded scales. Add the squared error of each row to `errors`."""
    top = np.float32(highest)
    values = f32_at(values, (TILE_ROWS * tiles, columns))
    scales = f32_at(scales, (tiles, columns // group_size, TILE_ROWS))
    zeros = u8_at(zeros, (tiles, columns // group_size, TILE_ROWS))
    codes, errors = u8_at(codes, (tiles, columns // 4, TILE_ROWS, 4)), f64_at(errors, (tiles, TILE_ROWS))
    error = f32_at(scratch, (TILE_ROWS,))
    for tile in range(scales.shape[0]):
        for group in range(scales.shape[1]):
            error[:] = np.float32(0)
            for lane in range(TILE_ROWS):
                scale = scales[tile, group, lane]
                zero = np.float32(zeros[tile, group, lane])
                inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
                for k in range(group_size):
                    column = group_size * group + k
                    x = values[TILE_ROWS * tile + lane, column]
                    code = min(max(np.rint(x * inverse) + zero, np.float32(0)), top)
                    distance = x - scale * (code - zero)
                    error[lane] += distance * distance
                    codes[tile, column // 4, lane, column % 4] = np.uint8(code)
            for lane in range(TILE_ROWS):
                errors[tile, lane] += np.float64(error[lane])
