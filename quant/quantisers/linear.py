"""lin4 and lin8: least-squares search of the group scale, then codes for the scale rounded to float16.

Per group of weights x, lin4 spans from min(x, 0) to max(x, 0) with an integer zero point, lin8 is symmetric around its
default zero point. For a range of factors f the step is f * span / levels, z = clip(rint(-min / step)),
q = clip(rint(x / step) + z), and the score is (sum x (q - z))^2 / (sum (q - z)^2), the reduction of the squared error
by the best scale d = (sum x (q - z)) / (sum (q - z)^2). The best d is rounded to float16 and the codes are taken again.

`quant.quantisers.reference` holds the same in plain NumPy; both do the same float32 operations in the same order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.errors import FormatError
from quant.formats import linear
from quant.formats.base import PackedTensor
from quant.quantisers.jit import jit, padded_tiles

FACTORS = {
    "lin4": tuple(np.float32(0.70 + 0.03 * step) for step in range(12)),
    "lin8": tuple(np.float32(0.94 + 0.01 * step) for step in range(7)),
}
MAX_F16 = np.float32(65504)


def quantise(name: str, values: NDArray[np.float32], group_size: int) -> tuple[PackedTensor, NDArray[np.float64]]:
    """Quantise finite `values` (rows, K) to `name`; also returns the squared error of each row (rows,).

    lin4 gets zero points, lin8 is symmetric. Raises FormatError if a scale is beyond float16.
    """
    rows, columns = values.shape
    asymmetric = name == "lin4"
    layout = linear.layout(name, (rows, columns), group_size, zeros=True)
    parts = {part: np.zeros(shape, dtype) for part, (dtype, shape) in layout.items()}
    padded = padded_tiles(values)
    top = np.float32((1 << linear.BITS[name]) - 1)
    default_zero = np.float32(linear.DEFAULT_ZERO[name])
    scales = np.empty(parts["scales"].shape, np.float32)
    search(padded, group_size, FACTORS[name], top, default_zero, asymmetric, scales, parts["zeros"])
    if float(scales.max()) > MAX_F16:
        raise FormatError(f"format {name} stores float16 scales, and weights as large as {values.max():.3g} need more")
    parts["scales"][:] = scales.astype(np.float16)
    errors = np.zeros((scales.shape[0], 16), np.float64)
    unsigned = np.empty((scales.shape[0], columns // 4, 16, 4), np.uint8)
    encode(padded, group_size, top, parts["scales"].astype(np.float32), parts["zeros"], unsigned, errors)
    if name == "lin4":
        parts["codes"][:] = unsigned[:, 0::2] | (unsigned[:, 1::2] << np.uint8(4))
    else:
        parts["codes"] = unsigned
        del parts["zeros"]
    return PackedTensor(name, (rows, columns), group_size, parts), errors.reshape(-1)[:rows]


@jit
def search(values, group_size, factors, top, default_zero, asymmetric, scales, zeros):
    """values (16 tiles, K) -> least-squares scales f32 and zero points u8, both (tiles, K/G, 16)."""
    block = np.empty((group_size, 16), np.float32)
    low = np.empty(16, np.float32)
    span = np.empty(16, np.float32)
    zero = np.empty(16, np.float32)
    inverse = np.empty(16, np.float32)
    best = np.empty(16, np.float32)
    products = np.empty(16, np.float32)
    squares = np.empty(16, np.float32)
    for tile in range(scales.shape[0]):
        for group in range(scales.shape[1]):
            for lane in range(16):
                row = values[16 * tile + lane]
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
                for lane in range(16):
                    step = span[lane] * factor / (top if asymmetric else top - np.float32(1))
                    inverse[lane] = np.float32(1) / step if step > 0 else np.float32(0)
                    offset = np.rint(-low[lane] * inverse[lane]) if asymmetric else default_zero
                    zero[lane] = min(max(offset, np.float32(0)), top)
                products[:] = np.float32(0)
                squares[:] = np.float32(0)
                for k in range(group_size):
                    for lane in range(16):
                        x = block[k, lane]
                        code = min(max(np.rint(x * inverse[lane]) + zero[lane], np.float32(0)), top)
                        level = code - zero[lane]
                        products[lane] += x * level
                        squares[lane] += level * level
                for lane in range(16):
                    fit = products[lane] / squares[lane] if squares[lane] > 0 else np.float32(0)
                    score = products[lane] * fit
                    if score > best[lane]:
                        best[lane] = score
                        scales[tile, group, lane] = fit
                        zeros[tile, group, lane] = np.uint8(zero[lane])


@jit
def encode(values, group_size, top, scales, zeros, codes, errors):
    """Codes u8 (tiles, K/4, 16, 4) for scales that were rounded; adds the squared error of each row to errors."""
    error = np.empty(16, np.float32)
    for tile in range(scales.shape[0]):
        for group in range(scales.shape[1]):
            error[:] = np.float32(0)
            for lane in range(16):
                scale = scales[tile, group, lane]
                zero = np.float32(zeros[tile, group, lane])
                inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
                for k in range(group_size):
                    column = group_size * group + k
                    x = values[16 * tile + lane, column]
                    code = min(max(np.rint(x * inverse) + zero, np.float32(0)), top)
                    distance = x - scale * (code - zero)
                    error[lane] += distance * distance
                    codes[tile, column // 4, lane, column % 4] = np.uint8(code)
            for lane in range(16):
                errors[tile, lane] += np.float64(error[lane])
