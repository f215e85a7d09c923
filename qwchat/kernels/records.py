"""The records and layout constants that kernels and Python share.

Apart from the kernels, because a start whose compiled code is in the cache imports neither them nor Numba.
"""

from __future__ import annotations

import numpy as np

_MATRIX_FIELDS = (
    *("kind", "rows", "tiles", "columns", "blocks_per_scale", "codes", "codes_step"),
    *("scales", "scales_step", "zeros", "zeros_step", "zero_step", "row_scales", "bias"),
)
# A weight matrix for the kernels: addresses, and sizes in bytes per tile of 16 rows.
MATRIX = np.dtype([(name, np.int64) for name in _MATRIX_FIELDS])

# Activations of `tokens` rows: f32, and the same quantised in blocks of 32 (see quantise in elementwise.py).
ACTIVATIONS = np.dtype([(name, np.int64) for name in ["x", "x8", "x_scales", "columns"]])

# One layer's cache and the head geometry.
CACHE = np.dtype([(name, np.int64) for name in ["num_heads", "num_kv_heads", "head_dim", "capacity", "k", "v"]])

SCRATCH_BYTES = 8 * 64  # what multiply_tiles needs of scratch
SPLIT = 512  # positions that attention works on with one softmax
PARTIAL_HEADER = 64  # bytes before the sums of a partial result of attention: maximum, sum of weights, padding
FEW_TOKENS = 8  # up to here attention is shared out by splits of positions, above by tokens
