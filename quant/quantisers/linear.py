"""lin4, lin8 and all other formats whose codes are their own levels, with f16 scales.

The group scale is found by a least-squares search; then the codes are computed for the scale rounded to float16. Per
group of weights x, a format that stores zero points spans from min(x, 0) to max(x, 0) with an integer zero point. Other
formats are symmetric around their default zero point. For a range of factors f:

    step = f * span / levels
    z = clip(rint(-min / step))
    q = clip(rint(x / step) + z)
    score = (sum x (q - z))^2 / (sum (q - z)^2)

The score is the reduction of the squared error by the best scale d = (sum x (q - z)) / (sum (q - z)^2). The best d is
rounded to float16 and the codes are computed again.

`quant.quantisers.reference` implements the same in plain NumPy, with the same float32 operations in the same order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.errors import FormatError
from quant.formats.format import TILE_ROWS, PackedTensor, pack_quads
from quant.formats.integer import BYTE_BITS, QUAD, IntegerFormat
from quant.quantisers.machine_code import CompiledLoops, compiled_functions
from quant.quantisers.padding import padded_rows

MAX_F16 = np.float32(65504)
SCRATCH_LINES = 7
"""Rows of 16 f32 of scratch memory, besides one group."""
LOOPS = CompiledLoops("quant.quantisers.compiled.linear", {"lin_search": 12, "lin_encode": 10}, cost=0.65)
_FEW_BITS = tuple(np.float32(0.70 + 0.03 * step) for step in range(12))
_EIGHT_BITS = tuple(np.float32(0.94 + 0.01 * step) for step in range(7))


def factors(fmt: IntegerFormat) -> tuple[np.float32, ...]:
    """Return the factors of the search. Formats with fewer levels gain more from clipping large weights."""
    return _EIGHT_BITS if fmt.bits == BYTE_BITS else _FEW_BITS


def quantise(
    fmt: IntegerFormat, values: NDArray[np.float32], group_size: int
) -> tuple[PackedTensor, NDArray[np.float64]]:
    """Quantise finite values (rows, K). Also return the squared error of each row (rows,).

    Raises:
        FormatError: a scale exceeds the range of float16.
    """
    layout = fmt.layout(values.shape, group_size, fmt.stores_zeros)
    rows, columns = values.shape
    parts = {part: np.zeros(shape, dtype) for part, (dtype, shape) in layout.items()}
    padded = padded_rows(values)
    search, encode = compiled_functions(LOOPS)
    scales, zeros = np.empty(parts["scales"].shape, np.float32), np.empty(parts["scales"].shape, np.uint8)
    tried_factors = np.array(factors(fmt), np.float32)
    scratch = np.empty((group_size + SCRATCH_LINES) * TILE_ROWS * 4, np.uint8)
    common = (padded.ctypes.data, len(scales), columns, group_size, fmt.largest_code)
    search_options = (int(fmt.stores_zeros), fmt.zero, tried_factors.ctypes.data, len(tried_factors))
    search(*common, *search_options, *(array.ctypes.data for array in (scales, zeros, scratch)))
    if float(scales.max()) > MAX_F16:
        raise FormatError(
            f"format {fmt.name} stores scales as float16, which is too small for weights of {values.max():.3g}"
        )
    parts["scales"][:] = scales.astype(np.float16)
    errors = np.zeros((len(scales), TILE_ROWS), np.float64)
    codes = np.empty((len(scales), columns // QUAD, TILE_ROWS, QUAD), np.uint8)
    rounded = parts["scales"].astype(np.float32)
    encode(*common, *(array.ctypes.data for array in (rounded, zeros, codes, errors, scratch)))
    parts["codes"] = pack_quads(codes, fmt.stored_bits)
    if fmt.stores_zeros:
        parts["zeros"] = zeros
    return PackedTensor(fmt.name, (rows, columns), group_size, parts), errors.reshape(-1)[:rows]
