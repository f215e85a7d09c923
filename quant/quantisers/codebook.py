"""q4: least-squares search of group scale, table and sign, then codes for the quantised scales.

Per group of 32 weights x, with the codebook T and the shifted one as tables:

1. Search. For each table, each end of it (which also decides the sign of the scale) and a range of factors f, lay the
   largest weight on f times the end, take the nearest table values t and score them by (sum x t)^2 / (sum t^2), which
   is the reduction of the squared error by the best scale d = (sum x t) / (sum t^2). Keep the best.
2. The row scale is max |d| / 63 over the groups of the row.
3. Encode. Of the three integers around d / row_scale, the one with the smallest squared error, with its nearest codes.

The search is the idea of llama.cpp's make_qx_quants, with a codebook instead of integers. `quant.quantisers.reference`
holds the same in plain NumPy; both do the same float32 operations in the same order and agree bit for bit.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from quant.formats import q4
from quant.formats.base import PackedTensor
from quant.quantisers.jit import jit, padded_tiles

FACTORS = tuple(np.float32(0.86 + 0.05 * step) for step in range(9))
TINY = np.float32(1e-30)
"""Groups whose largest weight is below this are stored as zeros: a scale for them would be subnormal."""
LOWEST = np.float32(q4.CODEBOOK[0])
HIGHEST = np.float32(q4.CODEBOOK[15])
SHIFT = np.float32(q4.SHIFT)
_BOOK = [float(entry) for entry in q4.CODEBOOK]
MIDPOINTS = tuple(np.float32((low + high) / 2) for low, high in pairwise(_BOOK))
STEPS = tuple(np.float32(high - low) for low, high in pairwise(_BOOK))


def quantise(values: NDArray[np.float32]) -> tuple[PackedTensor, NDArray[np.float64]]:
    """Quantise finite `values` (rows, K) to q4; also returns the squared error of each row (rows,)."""
    rows, columns = values.shape
    parts = {name: np.zeros(shape, dtype) for name, (dtype, shape) in q4.layout((rows, columns)).items()}
    padded = padded_tiles(values)
    tiles = padded.shape[0] // 16
    scales = np.empty((tiles, columns // 32, 16), np.float32)
    tables = np.empty((tiles, columns // 32, 16), np.float32)
    search(padded, FACTORS, MIDPOINTS, STEPS, LOWEST, HIGHEST, SHIFT, TINY, scales, tables)
    parts["row_scales"][:] = np.abs(scales).max(axis=1) / np.float32(q4.SCALE_MAX)
    errors = np.zeros((tiles, 16), np.float64)
    encode(
        padded,
        scales,
        tables,
        parts["row_scales"],
        MIDPOINTS,
        STEPS,
        LOWEST,
        TINY,
        parts["codes"],
        parts["scales"],
        errors,
    )
    return PackedTensor(q4.NAME, (rows, columns), q4.GROUP_SIZE, parts), errors.reshape(-1)[:rows]


@jit
def nearest_level(u, mid, step, lowest):
    """The table value nearest to u: the lowest one plus every step whose midpoint lies below u.

    Written out, since a loop over a tuple keeps LLVM from vectorising the loop around it (40 times slower).
    All terms are integers, so the float32 sum is exact in any order.
    """
    zero = np.float32(0)
    return (
        lowest
        + (step[0] if u > mid[0] else zero)
        + (step[1] if u > mid[1] else zero)
        + (step[2] if u > mid[2] else zero)
        + (step[3] if u > mid[3] else zero)
        + (step[4] if u > mid[4] else zero)
        + (step[5] if u > mid[5] else zero)
        + (step[6] if u > mid[6] else zero)
        + (step[7] if u > mid[7] else zero)
        + (step[8] if u > mid[8] else zero)
        + (step[9] if u > mid[9] else zero)
        + (step[10] if u > mid[10] else zero)
        + (step[11] if u > mid[11] else zero)
        + (step[12] if u > mid[12] else zero)
        + (step[13] if u > mid[13] else zero)
        + (step[14] if u > mid[14] else zero)
    )


@jit
def load_group(values, tile, group, block, peak, tiny):
    """block (32, 16) = one group of 16 rows divided by its largest weight by magnitude, peak (16,), sign included."""
    for lane in range(16):
        row = values[16 * tile + lane]
        largest = np.float32(0)
        for k in range(32):
            x = row[32 * group + k]
            if abs(x) > abs(largest):
                largest = x
        if abs(largest) < tiny:
            largest = np.float32(0)
        peak[lane] = largest
        inverse = np.float32(1) / largest if largest != 0 else np.float32(0)
        for k in range(32):
            block[k, lane] = row[32 * group + k] * inverse


@jit
def search(values, factors, midpoints, steps, lowest, highest, shift, tiny, scales, tables):
    """values (16 tiles, K) -> best scale and its table offset (0 or shift), both (tiles, K/32, 16)."""
    block = np.empty((32, 16), np.float32)
    peak = np.empty(16, np.float32)
    best = np.empty(16, np.float32)
    products = np.empty(16, np.float32)
    squares = np.empty(16, np.float32)
    for tile in range(scales.shape[0]):
        for group in range(scales.shape[1]):
            load_group(values, tile, group, block, peak, tiny)
            scale, table = scales[tile, group], tables[tile, group]
            best[:] = np.float32(0)
            scale[:] = np.float32(0)
            table[:] = np.float32(0)
            for bit in range(2):
                offset = shift if bit == 1 else np.float32(0)
                for end in range(2):
                    reach = (highest if end == 1 else lowest) + offset
                    for factor in factors:
                        spread = reach * factor
                        products[:] = np.float32(0)
                        squares[:] = np.float32(0)
                        for k in range(32):
                            for lane in range(16):
                                x = block[k, lane]
                                level = nearest_level(x * spread - offset, midpoints, steps, lowest) + offset
                                products[lane] += x * level
                                squares[lane] += level * level
                        for lane in range(16):
                            fit = products[lane] / squares[lane] if squares[lane] > 0 else np.float32(0)
                            score = products[lane] * fit
                            if score > best[lane]:
                                best[lane] = score
                                scale[lane] = fit * peak[lane]
                                table[lane] = offset


@jit
def encode(values, scales, tables, row_scales, midpoints, steps, lowest, tiny, codes, scale_bytes, errors):
    """Integer scales and codes for given row scales (tiles, 16); adds the squared error of each row to errors."""
    block = np.empty((32, 16), np.float32)
    peak = np.empty(16, np.float32)
    chosen = np.empty(16, np.float32)
    unit = np.empty(16, np.float32)
    inverse = np.empty(16, np.float32)
    error = np.empty(16, np.float32)
    best = np.empty(16, np.float32)
    nearest = np.empty((32, 16), np.uint8)
    for tile in range(scales.shape[0]):
        for group in range(scales.shape[1]):
            load_group(values, tile, group, block, peak, tiny)
            table = tables[tile, group]
            best[:] = np.float32(np.inf)
            for candidate in (0, -1, 1):
                for lane in range(16):
                    whole = near_scale(scales[tile, group, lane], row_scales[tile, lane], candidate)
                    unit[lane] = relative_unit(row_scales[tile, lane], whole, peak[lane])
                    inverse[lane] = np.float32(1) / unit[lane] if unit[lane] != 0 else np.float32(0)
                error[:] = np.float32(0)
                for k in range(32):
                    for lane in range(16):
                        x = block[k, lane]
                        level = nearest_level(x * inverse[lane] - table[lane], midpoints, steps, lowest) + table[lane]
                        distance = x - unit[lane] * level
                        error[lane] += distance * distance
                for lane in range(16):
                    if error[lane] < best[lane]:
                        best[lane] = error[lane]
                        chosen[lane] = near_scale(scales[tile, group, lane], row_scales[tile, lane], candidate)
            for lane in range(16):
                unit[lane] = relative_unit(row_scales[tile, lane], chosen[lane], peak[lane])
                inverse[lane] = np.float32(1) / unit[lane] if unit[lane] != 0 else np.float32(0)
                bit = 1 if table[lane] != 0 else 0
                scale_bytes[tile, group, lane] = 2 * int(chosen[lane]) + bit
                errors[tile, lane] += np.float64(best[lane]) * np.float64(peak[lane]) * np.float64(peak[lane])
            for k in range(32):
                for lane in range(16):
                    nearest[k, lane] = nearest_code(block[k, lane] * inverse[lane] - table[lane], midpoints)
            for octet in range(4):
                for lane in range(16):
                    for j in range(4):
                        high = nearest[8 * octet + 4 + j, lane]
                        codes[tile, 4 * group + octet, lane, j] = nearest[8 * octet + j, lane] | (high << 4)


@jit
def near_scale(scale, row_scale, offset):
    """The integer scale nearest to scale / row_scale, moved by offset, within -64..63; 0 for an all-zero row."""
    if row_scale <= 0:
        return np.float32(0)
    whole = np.rint(scale / row_scale) + np.float32(offset)
    return min(max(whole, np.float32(-64)), np.float32(63))


@jit
def relative_unit(row_scale, whole, peak):
    """row_scale * whole in units of the group's largest weight; 0 for an all-zero group."""
    return row_scale * whole / peak if peak != 0 else np.float32(0)


@jit
def nearest_code(u, mid):
    """The index of the table value nearest to u: how many midpoints lie below it."""
    one, zero = np.int32(1), np.int32(0)
    return (
        zero
        + (one if u > mid[0] else zero)
        + (one if u > mid[1] else zero)
        + (one if u > mid[2] else zero)
        + (one if u > mid[3] else zero)
        + (one if u > mid[4] else zero)
        + (one if u > mid[5] else zero)
        + (one if u > mid[6] else zero)
        + (one if u > mid[7] else zero)
        + (one if u > mid[8] else zero)
        + (one if u > mid[9] else zero)
        + (one if u > mid[10] else zero)
        + (one if u > mid[11] else zero)
        + (one if u > mid[12] else zero)
        + (one if u > mid[13] else zero)
        + (one if u > mid[14] else zero)
    )
