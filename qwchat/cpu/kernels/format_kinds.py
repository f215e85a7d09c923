"""Numbers of the weight formats in compiled code, and the sizes that the matrix kernels need.

Everything follows from the records in `quant.formats`. All integer formats compute the same sum, with unsigned weight
bytes and signed activations:

    y = row_scale * sum over blocks of 32 columns:  scale * x_scale * (sum(level[code] * x8) - zero * sum(x8))

They differ in how stored codes become bytes, and in where scale and zero point come from. In a format with minimums,
each block adds `sign * minimum * x_scale * sum(x8)`.
"""

from __future__ import annotations

from quant.formats import FORMATS, GroupedFormat
from quant.formats.format import TILE_ROWS
from quant.formats.integer import SUPER_GROUP
from qwchat.cpu.kernels.records import BLOCK

IDS = {name: number for number, name in enumerate(name for name, fmt in FORMATS.items() if fmt.kernel is not None)}
"""Format name -> the `kind` of a matrix in compiled code. Formats without a kernel are missing."""
BF16, F32 = IDS["bf16"], IDS["f32"]
INTEGER_FORMATS = {IDS[name]: fmt for name, fmt in FORMATS.items() if isinstance(fmt, GroupedFormat)}
FIRST_IMPORTED = min(number for number, fmt in INTEGER_FORMATS.items() if fmt.quantiser is None)
"""Kinds from this one on belong to formats that only imported tensors have."""
BLOCKS_PER_SUPER_SCALE = SUPER_GROUP // BLOCK


def block_bytes(fmt: GroupedFormat) -> int:
    """Return the bytes of the codes of one block: 16 rows of 32 columns."""
    return TILE_ROWS * BLOCK * fmt.stored_bits // 8


def scale_bytes(fmt: GroupedFormat) -> int:
    """Return the bytes of one group's scales: one scale for each of 16 rows."""
    return TILE_ROWS * fmt.scale_dtype.itemsize


def has_scale_per_block(fmt: GroupedFormat) -> bool:
    """Return whether every group of the format is one block of 32 columns."""
    return fmt.group_sizes == (BLOCK,)
