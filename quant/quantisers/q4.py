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
from quant.formats.format import TILE_ROWS, PackedTensor
from quant.formats.integer import IntegerFormat
from quant.formats.q4 import GROUP_SIZE
from quant.quantisers.machine_code import CompiledLoops, compiled_functions
from quant.quantisers.padding import padded_rows

FACTORS = tuple(np.float32(0.86 + 0.05 * step) for step in range(9))
TINY = np.float32(1e-30)
"""Groups whose largest weight is below this are stored as zeros: a scale for them would be subnormal."""
LOWEST = np.float32(q4.CODEBOOK[0])
HIGHEST = np.float32(q4.CODEBOOK[-1])
SHIFT = np.float32(q4.SHIFT)
_BOOK = [float(entry) for entry in q4.CODEBOOK]
MIDPOINTS = tuple(np.float32((low + high) / 2) for low, high in pairwise(_BOOK))
STEPS = tuple(np.float32(high - low) for low, high in pairwise(_BOOK))
SCRATCH_LINES = 6
SCRATCH_BYTES = (GROUP_SIZE + SCRATCH_LINES) * TILE_ROWS * 4 + GROUP_SIZE * TILE_ROWS
"""A group of 16 rows and six lines of it as f32, and its codes."""
LOOPS = CompiledLoops("quant.quantisers.compiled.q4", {"q4_search": 6, "q4_encode": 10}, cost=1.45)


def quantise(
    fmt: IntegerFormat, values: NDArray[np.float32], group_size: int
) -> tuple[PackedTensor, NDArray[np.float64]]:
    """Quantise finite `values` (rows, K) to q4; also returns the squared error of each row (rows,)."""
    layout = fmt.layout(values.shape, group_size)
    rows, columns = values.shape
    parts = {name: np.zeros(shape, dtype) for name, (dtype, shape) in layout.items()}
    padded = padded_rows(values)
    scales, tables = (np.empty(parts["scales"].shape, np.float32) for _ in range(2))
    search, encode = compiled_functions(LOOPS)
    scratch = np.empty(SCRATCH_BYTES, np.uint8)
    given = (padded.ctypes.data, len(scales), columns, scales.ctypes.data, tables.ctypes.data)
    search(*given, scratch.ctypes.data)
    parts["row_scales"][:] = np.abs(scales).max(axis=1) / np.float32(q4.SCALE_MAX)
    errors = np.zeros(parts["row_scales"].shape, np.float64)
    outputs = (parts["row_scales"], parts["codes"], parts["scales"], errors, scratch)
    encode(*given, *(array.ctypes.data for array in outputs))
    return PackedTensor(fmt.name, (rows, columns), group_size, parts), errors.reshape(-1)[:rows]
