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
from quant.quantisers.machine_code import compiled_functions
from quant.quantisers.tiles import padded_tiles

FACTORS = {
    "lin4": tuple(np.float32(0.70 + 0.03 * step) for step in range(12)),
    "lin8": tuple(np.float32(0.94 + 0.01 * step) for step in range(7)),
}
MAX_F16 = np.float32(65504)
SCRATCH_LINES = 7
"""Lines of 16 f32 that the loops need beside a group."""


def quantise(name: str, values: NDArray[np.float32], group_size: int) -> tuple[PackedTensor, NDArray[np.float64]]:
    """Quantise finite `values` (rows, K) to `name`; also returns the squared error of each row (rows,).

    lin4 gets zero points, lin8 is symmetric. Raises FormatError if a scale is beyond float16.
    """
    rows, columns = values.shape
    asymmetric = name == "lin4"
    layout = linear.layout(name, (rows, columns), group_size, zeros=True)
    parts = {part: np.zeros(shape, dtype) for part, (dtype, shape) in layout.items()}
    padded = padded_tiles(values)
    search, encode = compiled_functions(name)
    top = (1 << linear.BITS[name]) - 1
    scales = np.empty(parts["scales"].shape, np.float32)
    factors = np.array(FACTORS[name], np.float32)
    scratch = np.empty((group_size + SCRATCH_LINES) * 16 * 4, np.uint8)
    given = (padded.ctypes.data, len(scales), columns, group_size, top)
    span = (int(asymmetric), linear.DEFAULT_ZERO[name], factors.ctypes.data, len(factors))
    search(*given, *span, *(array.ctypes.data for array in (scales, parts["zeros"], scratch)))
    if float(scales.max()) > MAX_F16:
        raise FormatError(f"format {name} stores float16 scales, and weights as large as {values.max():.3g} need more")
    parts["scales"][:] = scales.astype(np.float16)
    errors = np.zeros((scales.shape[0], 16), np.float64)
    unsigned = np.empty((scales.shape[0], columns // 4, 16, 4), np.uint8)
    rounded = parts["scales"].astype(np.float32)
    encode(*given, *(array.ctypes.data for array in (rounded, parts["zeros"], unsigned, errors, scratch)))
    if name == "lin4":
        parts["codes"][:] = unsigned[:, 0::2] | (unsigned[:, 1::2] << np.uint8(4))
    else:
        parts["codes"] = unsigned
        del parts["zeros"]
    return PackedTensor(name, (rows, columns), group_size, parts), errors.reshape(-1)[:rows]
