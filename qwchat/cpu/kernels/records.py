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

BLOCK = 32  # activations are quantised in blocks of 32 columns
TOKEN_LANES = 4  # tokens that lie interleaved
PACKED_BLOCK_BYTES = TOKEN_LANES * (BLOCK + 8)  # bytes of one block of TOKEN_LANES tokens

# Activations of `tokens` rows: `x` (tokens, columns) f32, and `packed`, the same quantised (see quantise in
# row_kernels.py): (tokens/TOKEN_LANES, columns/BLOCK) pieces of PACKED_BLOCK_BYTES bytes, so that one address serves a
# whole tile: codes (TOKEN_LANES, BLOCK) i8, scales (TOKEN_LANES) f32, offsets (TOKEN_LANES) i32 = -128 times the sum of
# the codes.
ACTIVATIONS = np.dtype([(name, np.int64) for name in ["x", "packed", "columns"]])

# One layer's KV cache and the head geometry; see attention_tiles.py for the layout of each kind.
_CACHE_FIELDS = (
    *("kind", "num_heads", "num_kv_heads", "head_dim", "capacity"),
    *("k", "k_scales", "v", "v_scales", "k_offset"),
)
CACHE = np.dtype([(name, np.int64) for name in _CACHE_FIELDS])
KV_F32, KV_Q8 = range(2)
KV_KINDS = {"f32": KV_F32, "q8": KV_Q8}

# Rotated and scaled queries, (num_kv_heads, row_capacity, head_dim); a KV head's rows are (token, query head of the
# group).  `x` f32; for an 8-bit cache also `x8` i8, `scales` (..., head_dim/32) f32 and `offsets` (..., head_dim/32)
# i32, which is -128 times the sum of each block of `x8`.
QUERIES = np.dtype([(name, np.int64) for name in ["row_capacity", "x", "x8", "scales", "zero_corrections"]])

GEMV_TOKENS = 8  # the most tokens whose codes are unpacked in registers; more meet a panel in the first-level cache
NORM_PER_THREAD_TOKENS = 2  # up to so many rows are normed by every member for itself
PANEL_BLOCKS = 16  # blocks of 32 columns in a panel
PANEL_BLOCK_BYTES = 2 * (16 * BLOCK + 64 + 64)  # bytes of a panel's block: codes, scales and zero points of two tiles
SPLIT_POSITIONS = 512  # positions that attention works on with one softmax
PARTIAL_HEADER_BYTES = 64  # bytes before the sums of a partial result of attention: maximum, sum of weights, padding
ATTENTION_ITEM_TOKENS = 8  # above: a block has a whole number of ATTENTION_ROWS then, whatever the group of query heads
ATTENTION_ROWS = 8  # queries that attention works on at once
SPLIT_ATTENTION_TOKENS = 8  # up to here attention is shared out by splits of positions, above by tokens
# What attend_rows needs: scores f32, weights i16, their scales, and one row of weights f32.
ATTENTION_SCRATCH_BYTES = ATTENTION_ROWS * SPLIT_POSITIONS * (4 + 2) + 64 + SPLIT_POSITIONS * 4


def matmul_scratch_bytes(tokens: int) -> int:
    """What the drivers in matmul.py need of scratch: a panel, and two sets of sums of two tiles."""
    rows = -(-max(tokens, GEMV_TOKENS) // TOKEN_LANES) * TOKEN_LANES
    return PANEL_BLOCKS * PANEL_BLOCK_BYTES + 2 * rows * 128
