"""Loop of q6. Method and formulas: `quant.quantisers.q6`."""

from __future__ import annotations

import numpy as np

from quant.formats.format import TILE_ROWS
from quant.formats.q6 import CODE_MAX, CODE_MIN, GROUP_SIZE, SCALE_MAX, ZERO
from quant.native.backend import types
from quant.native.compiler import inlined
from quant.quantisers.compiled.array_views import f32_at, f64_at, i8_at, u8_at
from quant.quantisers.compiled.unit import standalone
from quant.quantisers.q6 import CANDIDATES, SCRATCH_LINES


@inlined
def nearest_code(x, inverse):
    """Return the code nearest to x * inverse, -32..31."""
    return min(max(np.rint(x * inverse), np.float32(CODE_MIN)), np.float32(CODE_MAX))


@standalone(types.void(*[types.int64] * 8))
def q6_encode(values, tiles, columns, row_scales, codes, scale_bytes, errors, scratch):
    """Write integer scales, and codes as bytes, for the row scales (tiles, 16). Add the squared errors to errors."""
    values = f32_at(values, (TILE_ROWS * tiles, columns))
    row_scales, errors = f32_at(row_scales, (tiles, TILE_ROWS)), f64_at(errors, (tiles, TILE_ROWS))
    codes = u8_at(codes, (tiles, columns // 4, TILE_ROWS, 4))
    scale_bytes = i8_at(scale_bytes, (tiles, columns // GROUP_SIZE, TILE_ROWS))
    block = f32_at(scratch, (GROUP_SIZE, TILE_ROWS))
    lanes = f32_at(scratch + GROUP_SIZE * TILE_ROWS * 4, (SCRATCH_LINES, TILE_ROWS))
    base, sign, chosen, unit = lanes[0], lanes[1], lanes[2], lanes[3]
    inverse, error, best = lanes[4], lanes[5], lanes[6]
    for tile in range(scale_bytes.shape[0]):
        for group in range(scale_bytes.shape[1]):
            for lane in range(TILE_ROWS):
                row_scale = row_scales[tile, lane]
                # Divided by the row scale, the weights are at most 32 * 127, far from the limits of float32.
                scaled = np.float32(1) / row_scale if row_scale > 0 else np.float32(0)
                peak = np.float32(0)
                for k in range(GROUP_SIZE):
                    x = values[TILE_ROWS * tile + lane, GROUP_SIZE * group + k] * scaled
                    block[k, lane] = x
                    if abs(x) > abs(peak):
                        peak = x
                base[lane] = np.ceil(abs(peak) / np.float32(-CODE_MIN))
                sign[lane] = np.float32(-1) if peak > 0 else np.float32(1)
            best[:] = np.float32(np.inf)
            chosen[:] = np.float32(0)
            for candidate in CANDIDATES:
                for lane in range(TILE_ROWS):
                    size = min(max(base[lane] + np.float32(candidate), np.float32(0)), np.float32(SCALE_MAX))
                    unit[lane] = sign[lane] * size
                    inverse[lane] = np.float32(1) / unit[lane] if size > 0 else np.float32(0)
                error[:] = np.float32(0)
                for k in range(GROUP_SIZE):
                    for lane in range(TILE_ROWS):
                        x = block[k, lane]
                        distance = x - unit[lane] * nearest_code(x, inverse[lane])
                        error[lane] += distance * distance
                for lane in range(TILE_ROWS):
                    if error[lane] < best[lane]:
                        best[lane] = error[lane]
                        chosen[lane] = unit[lane]
            for lane in range(TILE_ROWS):
                inverse[lane] = np.float32(1) / chosen[lane] if chosen[lane] != 0 else np.float32(0)
                scale_bytes[tile, group, lane] = int(chosen[lane])
                row_scale = np.float64(row_scales[tile, lane])
                errors[tile, lane] += np.float64(best[lane]) * row_scale * row_scale
            for k in range(GROUP_SIZE):
                for lane in range(TILE_ROWS):
                    code = nearest_code(block[k, lane], inverse[lane])
                    codes[tile, GROUP_SIZE // 4 * group + k // 4, lane, k % 4] = int(code) + ZERO
