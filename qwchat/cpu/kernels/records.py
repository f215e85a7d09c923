"""Records and layout constants that the kernels and Python share.

They do not stand beside the kernels, because a start that finds compiled code in the cache imports neither the kernels
nor Numba.

All fields of a record are 64-bit integers: sizes, or addresses in bytes. Matrices are stored in tiles of 16 rows, and
every buffer begins on a cache line of 64 bytes.
"""

from __future__ import annotations

import numpy as np

from qwchat.limits import ACTIVATION_BITS

_MATRIX_FIELDS = (
    *("kind", "rows", "tiles", "columns", "blocks_per_scale", "codes", "codes_step"),
    *("scales", "scales_step", "zeros", "zeros_step", "zero_step", "row_scales", "bias"),
    *("minimums", "minimums_step", "super_scales", "super_scales_step", "super_minimums", "super_minimums_step"),
)
# A weight matrix (rows, columns) in tiles of 16 rows.
#   kind              number of the weight format, see format_kinds.py
#   tiles             ceil(rows / 16)
#   blocks_per_scale  blocks of 32 columns that share a scale and a zero point
#   codes, scales, zeros, row_scales, bias, minimums, super_scales, super_minimums
#                     addresses of the parts; row_scales and bias (tiles * 16) f32; 0 for a part that the matrix lacks,
#                     except zeros
#   *_step            bytes from one tile to the next
#   zero_step         bytes from one group's zero points to the next: 16, or 0 where one zero point serves all groups
MATRIX = np.dtype([(name, np.int64) for name in _MATRIX_FIELDS])

BLOCK = 32  # columns of activations that share a scale
TOKEN_LANES = 4  # packed rows whose blocks are stored together
PACKED_BLOCK_BYTES = TOKEN_LANES * (BLOCK + 12)  # bytes of one such block: codes, scales, corrections, sums

# Activations of a chunk of tokens, twice: `x` (tokens, columns) f32, and `packed`, the same as rows of 8-bit codes (see
# row_kernels.quantise). A token has `terms` adjacent rows: one, or a second one for what the first one's rounding lost.
# `packed` is (ceil(rows/4), columns/32, PACKED_BLOCK_BYTES): the blocks of TOKEN_LANES rows are stored side by side, so
# that a tile of the matrix kernels needs one address for all of them. A block holds
#   codes             (TOKEN_LANES, BLOCK) i8
#   scales            (TOKEN_LANES) f32
#   zero corrections  (TOKEN_LANES) i32: -128 times the sum of the row's codes. A dot product with weight bytes whose
#                     zero point is 128 starts from it instead of from 0.
#   negative sums     (TOKEN_LANES) f32: minus the sum of the row's codes, times its scale. Formats with minimums
#                     multiply them by these.
ACTIVATIONS = np.dtype([(name, np.int64) for name in ["x", "packed", "columns", "terms"]])
TERMS = {bits: bits // 8 for bits in ACTIVATION_BITS}  # bits of activations -> packed rows of each token

# KV cache of one layer, with the geometry of its heads; attention_tiles.py has the layout of each kind.
#   capacity  positions, a multiple of SPLIT_POSITIONS
#   k, k_scales, v, v_scales
#             addresses; the scales are used by an 8-bit cache only
#   k_offset  (num_kv_heads, head_dim) f32, subtracted from each rotated key before an 8-bit cache rounds it
_CACHE_FIELDS = (
    *("kind", "num_heads", "num_kv_heads", "head_dim", "capacity"),
    *("k", "k_scales", "v", "v_scales", "k_offset"),
)
CACHE = np.dtype([(name, np.int64) for name in _CACHE_FIELDS])
KV_F32, KV_Q8 = range(2)
KV_KINDS = {"f32": KV_F32, "q8": KV_Q8}

# Queries after RoPE, times 1/sqrt(head_dim). A row is one query head of one token; the rows of a KV head are ordered by
# token, then by query head of its group.
#   x                 (num_kv_heads, row_capacity, head_dim) f32
#   x8                the same in i8, for an 8-bit cache
#   scales            (num_kv_heads, row_capacity, head_dim/32) f32
#   zero_corrections  (num_kv_heads, row_capacity, head_dim/32) i32: -128 times the sum of each block of x8
QUERIES = np.dtype([(name, np.int64) for name in ["row_capacity", "x", "x8", "scales", "zero_corrections"]])

# Up to this many tokens, codes are unpacked in registers for each use. Beyond, they are unpacked once into a panel.
GEMV_TOKENS = 8
# Up to this many rows, each thread computes RMSNorm of all rows for itself: that is quicker than a barrier.
NORM_PER_THREAD_TOKENS = 2
PANEL_BLOCKS = 16  # blocks of 32 columns in a panel: 20 KiB for two tiles, which fits the first-level cache
PANEL_BLOCK_BYTES = 2 * (16 * BLOCK + 64 + 64)  # codes i8, scales f32, zero points i32 or minimums f32 of two tiles
PANEL_PLAIN, PANEL_ZEROS, PANEL_MINIMUMS = range(3)  # what a panel holds besides codes and scales
SPLIT_POSITIONS = 512  # positions that share one softmax; the results of several splits are merged
PARTIAL_HEADER_BYTES = 64  # before the sums of a partial result: maximum f32, sum of weights f32, padding
# Tokens of one item of attention in a long step: a multiple of ATTENTION_ROWS rows for any number of heads in a group.
ATTENTION_ITEM_TOKENS = 8
ATTENTION_ROWS = 8  # rows (query heads of tokens) per call of the attention kernels
# Up to this many tokens, an item of attention is a split of positions, so that one token keeps all threads busy.
SPLIT_ATTENTION_TOKENS = 8
# Scratch of attend_rows: scores f32, weights i16, the scales of the weights, and one row of value scales f32.
ATTENTION_SCRATCH_BYTES = ATTENTION_ROWS * SPLIT_POSITIONS * (4 + 2) + 64 + SPLIT_POSITIONS * 4


def matmul_scratch_bytes(rows: int) -> int:
    """Return the scratch bytes that `matmul.multiply_pairs` and `activate_pairs` need for `rows` packed rows.

    It holds one panel, and for gate and up one set of sums each: 128 bytes (2 tiles of 16 f32) per row.
    """
    rows = -(-max(rows, GEMV_TOKENS) // TOKEN_LANES) * TOKEN_LANES
    return PANEL_BLOCKS * PANEL_BLOCK_BYTES + 2 * rows * 128
