"""q4: least-squares search of group scale, table and sign, then codes for the quantised scales.

Per group of 32 weights x, with two tables t (the codebook, and the codebook plus SHIFT):

1. Search. For each table, each end of it (which also selects the sign of the scale) and each factor f: scale the group
   so that its largest weight becomes f times that end, take the nearest table values t, and compute the score
   (sum x t)^2 / (sum t^2). It is the reduction of the squared error by the best scale d = (sum x t) / (sum t^2). Keep
   the best.
2. Row scale. It is max |d| / 63 over the groups of the row.
3. Encode. Of the three integers around d / row_scale, use the one whose nearest codes have the smallest squared error.

The search follows `make_qx_quants` of llama.cpp, with a codebook instead of integers. `quant.quantisers.reference`
implements the same in plain NumPy. Both perform the same float32 operations in the same order and agree bit for bit.
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
"""Groups whose largest weight is below this are stored as zeros, since their scale would be subnormal."""
LOWEST = np.float32(q4.CODEBOOK[0])
HIGHEST = np.float32(q4.CODEBOOK[-1])
SHIFT = np.float32(q4.SHIFT)
_BOOK = [float(entry) for entry in q4.CODEBOOK]
MIDPOINTS = tuple(np.float32((low + high) / 2) for low, high in pairwise(_BOOK))
STEPS = tuple(np.float32(high - low) for low, high in pairwise(_BOOK))
SCRATCH_LINES = 6
SCRATCH_BYTES = (GROUP_SIZE + SCRATCH_LINES) * TILE_ROWS * 4 + GROUP_SIZE * TILE_ROWS
"""One group of 16 rows and six rows of 16 values in f32, and the codes of the group."""
LOOPS = CompiledLoops("quant.quantisers.compiled.q4", {"q4_search": 6, "q4_encode": 10}, cost=1.45)


def quantise(
    fmt: IntegerFormat, values: NDArray[np.float32], group_size: int
) -> tuple[PackedTensor, NDArray[np.float64]]:
    """Quantise finite values (rows, K) to q4. Also return the squared error of each row (rows,)."""
    layout = fmt.layout(values.shape, group_size)
    rows, columns = values.shape
    parts = {name: np.zeros(shape, dtype) for name, (dtype, shape) in layout.items()}
    padded = padded_rows(values)
    scales, tables = (np.empty(parts["scales"].shape, np.float32) for _ in range(2))
    search, encode = compiled_functions(LOOPS)
    scratch = np.empty(SCRATCH_BYTES, np.uint8)
    common = (padded.ctypes.data, len(scales), columns, scales.ctypes.data, tables.ctypes.data)
    search(*common, scratch.ctypes.data)
    parts["row_scales"][:] = np.abs(scales).max(axis=1) / np.float32(q4.SCALE_MAX)
    errors = np.zeros(parts["row_scales"].shape, np.float64)
    outputs = (parts["row_scales"], parts["codes"], parts["scales"], errors, scratch)
    encode(*common, *(array.ctypes.data for array in outputs))
    return PackedTensor(fmt.name, (rows, columns), group_size, parts), errors.reshape(-1)[:rows]
