"""Loops of q4. Method and formulas: `quant.quantisers.q4`."""

from __future__ import annotations

import numpy as np

from quant.formats.format import TILE_ROWS
from quant.formats.q4 import GROUP_SIZE, SCALE_MAX, SCALE_MIN
from quant.native.backend import types
from quant.native.compiler import inlined
from quant.quantisers.compiled.array_views import f32_at, f64_at, i8_at, u8_at
from quant.quantisers.compiled.nearest_level import nearest_code, nearest_level
from quant.quantisers.compiled.unit import standalone
from quant.quantisers.q4 import FACTORS, HIGHEST, LOWEST, SCRATCH_LINES, SHIFT, TINY


@inlined
def load_group(values, tile, group, block, peak):
    """Fill block (32, 16) with one group of 16 rows divided by peak (16,): the signed weight of largest magnitude."""
    for lane in range(TILE_ROWS):
        row = values[TILE_ROWS * tile + lane]
        largest = np.float32(0)
        for k in range(GROUP_SIZE):
            x = row[GROUP_SIZE * group + k]
            if abs(x) > abs(largest):
                largest = x
        if abs(largest) < TINY:
            largest = np.float32(0)
        peak[lane] = largest
        inverse = np.float32(1) / largest if largest != 0 else np.float32(0)
        for k in range(GROUP_SIZE):
            block[k, lane] = row[GROUP_SIZE * group + k] * inverse


@inlined
def near_scale(scale, row_scale, offset):
    """Return the integer nearest to scale / row_scale, plus offset, clipped to -64..63. Return 0 for a row of zeros."""
    if row_scale <= 0:
        return np.float32(0)
    whole = np.rint(scale / row_scale) + np.float32(offset)
    return min(max(whole, np.float32(SCALE_MIN)), np.float32(SCALE_MAX))


@inlined
def relative_unit(row_scale, whole, peak):
    """Return row_scale * whole divided by the group's peak. Return 0 for a group of zeros."""
    return row_scale * whole / peak if peak != 0 else np.float32(0)


@standalone(types.void(*[types.int64] * 6))
def q4_search(values, tiles, columns, scales, tables, scratch):
    """Find scale and table offset (0 or SHIFT), (tiles, K/32, 16) f32, of every group of values (16 tiles, K) f32."""
    values = f32_at(values, (TILE_ROWS * tiles, columns))
    scales = f32_at(scales, (tiles, columns // GROUP_SIZE, TILE_ROWS))
    tables = f32_at(tables, (tiles, columns // GROUP_SIZE, TILE_ROWS))
    block = f32_at(scratch, (GROUP_SIZE, TILE_ROWS))
    lanes = f32_at(scratch + GROUP_SIZE * TILE_ROWS * 4, (4, TILE_ROWS))
    peak, best, products, squares = lanes[0], lanes[1], lanes[2], lanes[3]
    for tile in range(scales.shape[0]):
        for group in range(scales.shape[1]):
            load_group(values, tile, group, block, peak)
            scale, table = scales[tile, group], tables[tile, group]
            best[:] = np.float32(0)
            scale[:] = np.float32(0)
            table[:] = np.float32(0)
            for bit in range(2):
                offset = SHIFT if bit == 1 else np.float32(0)
                for end in range(2):
                    reach = (HIGHEST if end == 1 else LOWEST) + offset
                    for factor in FACTORS:
                        spread = reach * factor
                        products[:] = np.float32(0)
                        squares[:] = np.float32(0)
                        for k in range(GROUP_SIZE):
                            for lane in range(TILE_ROWS):
                                x = block[k, lane]
                                level = nearest_level(x * spread - offset) + offset
                                products[lane] += x * level
                                squares[lane] += level * level
                        for lane in range(TILE_ROWS):
                            fit = products[lane] / squares[lane] if squares[lane] > 0 else np.float32(0)
                            score = products[lane] * fit
                            if score > best[lane]:
                                best[lane] = score
                                scale[lane] = fit * peak[lane]
                                table[lane] = offset


@standalone(types.void(*[types.int64] * 10))
def q4_encode(values, tiles, columns, scales, tables, row_scales, codes, scale_bytes, errors, scratch):
    """Write integer scales and codes for the row scales (tiles, 16). Add the squared error of each row to errors."""
    values = f32_at(values, (TILE_ROWS * tiles, columns))
    scales = f32_at(scales, (tiles, columns // GROUP_SIZE, TILE_ROWS))
    tables = f32_at(tables, (tiles, columns // GROUP_SIZE, TILE_ROWS))
    row_scales, errors = f32_at(row_scales, (tiles, TILE_ROWS)), f64_at(errors, (tiles, TILE_ROWS))
    codes = u8_at(codes, (tiles, columns // 8, TILE_ROWS, 4))
    scale_bytes = i8_at(scale_bytes, (tiles, columns // GROUP_SIZE, TILE_ROWS))
    block = f32_at(scratch, (GROUP_SIZE, TILE_ROWS))
    lanes = f32_at(scratch + GROUP_SIZE * TILE_ROWS * 4, (SCRATCH_LINES, TILE_ROWS))
    peak, chosen, unit, inverse, error, best = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4], lanes[5]
    nearest = u8_at(scratch + (GROUP_SIZE + SCRATCH_LINES) * TILE_ROWS * 4, (GROUP_SIZE, TILE_ROWS))
    for tile in range(scales.shape[0]):
        for group in range(scales.shape[1]):
            load_group(values, tile, group, block, peak)
            table = tables[tile, group]
            best[:] = np.float32(np.inf)
            for candidate in (0, -1, 1):
                for lane in range(TILE_ROWS):
                    whole = near_scale(scales[tile, group, lane], row_scales[tile, lane], candidate)
                    unit[lane] = relative_unit(row_scales[tile, lane], whole, peak[lane])
                    inverse[lane] = np.float32(1) / unit[lane] if unit[lane] != 0 else np.float32(0)
                error[:] = np.float32(0)
                for k in range(GROUP_SIZE):
                    for lane in range(TILE_ROWS):
                        x = block[k, lane]
                        level = nearest_level(x * inverse[lane] - table[lane]) + table[lane]
                        distance = x - unit[lane] * level
                        error[lane] += distance * distance
                for lane in range(TILE_ROWS):
                    if error[lane] < best[lane]:
                        best[lane] = error[lane]
                        chosen[lane] = near_scale(scales[tile, group, lane], row_scales[tile, lane], candidate)
            for lane in range(TILE_ROWS):
                unit[lane] = relative_unit(row_scales[tile, lane], chosen[lane], peak[lane])
                inverse[lane] = np.float32(1) / unit[lane] if unit[lane] != 0 else np.float32(0)
                bit = 1 if table[lane] != 0 else 0
                scale_bytes[tile, group, lane] = 2 * int(chosen[lane]) + bit
                errors[tile, lane] += np.float64(best[lane]) * np.float64(peak[lane]) * np.float64(peak[lane])
            for k in range(GROUP_SIZE):
                for lane in range(TILE_ROWS):
                    nearest[k, lane] = nearest_code(block[k, lane] * inverse[lane] - table[lane])
            for octet in range(GROUP_SIZE // 8):
                for lane in range(TILE_ROWS):
                    for j in range(4):
                        high = nearest[8 * octet + 4 + j, lane]
                        codes[tile, GROUP_SIZE // 8 * group + octet, lane, j] = nearest[8 * octet + j, lane] | (
                            high << 4
                        )
