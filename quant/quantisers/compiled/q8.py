"""Loop of q8. Method and formulas: `quant.quantisers.q8`."""

from __future__ import annotations

import numpy as np

from quant.formats.format import TILE_ROWS
from quant.formats.q8 import CODE_MAX, GROUP_SIZE, SCALE_MAX, ZERO
from quant.native.backend import types
from quant.quantisers.compiled.array_views import f32_at, f64_at, u8_at
from quant.quantisers.compiled.unit import standalone
from quant.quantisers.q8 import CANDIDATES, SCRATCH_LINES


@standalone(types.void(*[types.int64] * 8))
def q8_encode(values, tiles, columns, row_scales, codes, scale_bytes, errors, scratch):
    """Write integer scales and codes for the row scales (tiles, 16). Add the squared error of each row to errors."""
    values = f32_at(values, (TILE_ROWS * tiles, columns))
    row_scales, errors = f32_at(row_scales, (tiles, TILE_ROWS)), f64_at(errors, (tiles, TILE_ROWS))
    codes = u8_at(codes, (tiles, columns // 4, TILE_ROWS, 4))
    scale_bytes = u8_at(scale_bytes, (tiles, columns // GROUP_SIZE, TILE_ROWS))
    block = f32_at(scratch, (GROUP_SIZE, TILE_ROWS))
    lanes = f32_at(scratch + GROUP_SIZE * TILE_ROWS * 4, (SCRATCH_LINES, TILE_ROWS))
    base, chosen, unit, inverse, error, best = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4], lanes[5]
    for tile in range(scale_bytes.shape[0]):
        for group in range(scale_bytes.shape[1]):
            for lane in range(TILE_ROWS):
                row_scale = row_scales[tile, lane]
                # Divided by the row scale, the weights are at most 127 * 255, far from the limits of float32.
                scaled = np.float32(1) / row_scale if row_scale > 0 else np.float32(0)
                peak = np.float32(0)
                for k in range(GROUP_SIZE):
                    x = values[TILE_ROWS * tile + lane, GROUP_SIZE * group + k] * scaled
                    block[k, lane] = x
                    peak = max(peak, abs(x))
                base[lane] = np.ceil(peak / np.float32(CODE_MAX))
            best[:] = np.float32(np.inf)
            chosen[:] = np.float32(0)
            for candidate in CANDIDATES:
                for lane in range(TILE_ROWS):
                    unit[lane] = min(max(base[lane] + np.float32(candidate), np.float32(0)), np.float32(SCALE_MAX))
                    inverse[lane] = np.float32(1) / unit[lane] if unit[lane] > 0 else np.float32(0)
                error[:] = np.float32(0)
                for k in range(GROUP_SIZE):
                    for lane in range(TILE_ROWS):
                        x = block[k, lane]
                        quantum = min(max(np.rint(x * inverse[lane]), np.float32(-CODE_MAX)), np.float32(CODE_MAX))
                        distance = x - unit[lane] * quantum
                        error[lane] += distance * distance
                for lane in range(TILE_ROWS):
                    if error[lane] < best[lane]:
                        best[lane] = error[lane]
                        chosen[lane] = unit[lane]
            for lane in range(TILE_ROWS):
                inverse[lane] = np.float32(1) / chosen[lane] if chosen[lane] > 0 else np.float32(0)
                scale_bytes[tile, group, lane] = int(chosen[lane])
                row_scale = np.float64(row_scales[tile, lane])
                errors[tile, lane] += np.float64(best[lane]) * row_scale * row_scale
            for k in range(GROUP_SIZE):
                for lane in range(TILE_ROWS):
                    nearest = np.rint(block[k, lane] * inverse[lane])
                    quantum = min(max(nearest, np.float32(-CODE_MAX)), np.float32(CODE_MAX))
                    codes[tile, GROUP_SIZE // 4 * group + k // 4, lane, k % 4] = int(quantum) + ZERO
