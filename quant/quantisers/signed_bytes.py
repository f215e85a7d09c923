"""q8: group scales as multiples of a row scale, chosen among neighbours by squared error.

The row scale is the largest weight of the row / (127 * 255), so that the widest group has scale 255. For a group of 32
weights the integer scales from two below to one above the one that just avoids clipping are tried, each with codes
q = clip(rint(x / (row_scale * scale)), -127, 127), and the smallest squared error wins.

`quant.quantisers.reference` holds the same in plain NumPy; both do the same float32 operations in the same order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.formats import q8
from quant.formats.base import PackedTensor
from quant.quantisers.jit import jit, padded_tiles

CANDIDATES = (0, -1, -2, 1)
TINY = np.float32(1e-30)
"""Rows whose largest weight is below this are stored as zeros: a row scale for them would be subnormal."""


def quantise(values: NDArray[np.float32]) -> tuple[PackedTensor, NDArray[np.float64]]:
    """Quantise finite `values` (rows, K) to q8; also returns the squared error of each row (rows,)."""
    rows, columns = values.shape
    parts = {name: np.zeros(shape, dtype) for name, (dtype, shape) in q8.layout((rows, columns)).items()}
    padded = padded_tiles(values)
    row_scales = parts["row_scales"]
    row_scales[:] = row_scales_of(padded).reshape(row_scales.shape)
    errors = np.zeros(row_scales.shape, np.float64)
    encode(padded, row_scales, CANDIDATES, parts["codes"], parts["scales"], errors)
    return PackedTensor(q8.NAME, (rows, columns), q8.GROUP_SIZE, parts), errors.reshape(-1)[:rows]


def row_scales_of(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, K) -> (rows,): largest magnitude / (127 * 255), 0 for rows that are stored as zeros."""
    peak = np.abs(values).max(axis=1)
    scaled: NDArray[np.float32] = np.where(peak < TINY, np.float32(0), peak / np.float32(q8.CODE_MAX * q8.SCALE_MAX))
    return scaled


@jit
def encode(values, row_scales, candidates, codes, scale_bytes, errors):
    """Integer scales and codes for given row scales (tiles, 16); adds the squared error of each row to errors."""
    block = np.empty((32, 16), np.float32)
    base = np.empty(16, np.float32)
    chosen = np.empty(16, np.float32)
    unit = np.empty(16, np.float32)
    inverse = np.empty(16, np.float32)
    error = np.empty(16, np.float32)
    best = np.empty(16, np.float32)
    for tile in range(scale_bytes.shape[0]):
        for group in range(scale_bytes.shape[1]):
            for lane in range(16):
                row_scale = row_scales[tile, lane]
                # In units of the row scale the weights lie within 127 * 255, far from float32's limits.
                scaled = np.float32(1) / row_scale if row_scale > 0 else np.float32(0)
                peak = np.float32(0)
                for k in range(32):
                    x = values[16 * tile + lane, 32 * group + k] * scaled
                    block[k, lane] = x
                    peak = max(peak, abs(x))
                base[lane] = np.ceil(peak / np.float32(127))
            best[:] = np.float32(np.inf)
            chosen[:] = np.float32(0)
            for candidate in candidates:
                for lane in range(16):
                    unit[lane] = min(max(base[lane] + np.float32(candidate), np.float32(0)), np.float32(255))
                    inverse[lane] = np.float32(1) / unit[lane] if unit[lane] > 0 else np.float32(0)
                error[:] = np.float32(0)
                for k in range(32):
                    for lane in range(16):
                        x = block[k, lane]
                        quantum = min(max(np.rint(x * inverse[lane]), np.float32(-127)), np.float32(127))
                        distance = x - unit[lane] * quantum
                        error[lane] += distance * distance
                for lane in range(16):
                    if error[lane] < best[lane]:
                        best[lane] = error[lane]
                        chosen[lane] = unit[lane]
            for lane in range(16):
                inverse[lane] = np.float32(1) / chosen[lane] if chosen[lane] > 0 else np.float32(0)
                scale_bytes[tile, group, lane] = int(chosen[lane])
                row_scale = np.float64(row_scales[tile, lane])
                errors[tile, lane] += np.float64(best[lane]) * row_scale * row_scale
            for k in range(32):
                for lane in range(16):
                    quantum = min(max(np.rint(block[k, lane] * inverse[lane]), np.float32(-127)), np.float32(127))
                    codes[tile, 8 * group + k // 4, lane, k % 4] = int(quantum) + 128
