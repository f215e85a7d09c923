"""How the weight formats of :mod:`quant.formats` meet the matrix kernel: all of it follows from their records.

All integer formats are one arithmetic (design, "One arithmetic"): unsigned weight bytes times signed activations,

    y = row_scale * sum over blocks of 32 k:  scale * x_scale * (sum(level[code] * x8) - zero * sum(x8))

and differ in how a line of codes becomes bytes, and where scale and zero come from.
"""

from __future__ import annotations

from quant.formats import FORMATS, IntegerFormat
from quant.formats.format import TILE_ROWS
from qwchat.cpu.kernels.records import BLOCK

IDS = {name: number for number, name in enumerate(name for name, fmt in FORMATS.items() if fmt.kernel is not None)}
"""The kind of a matrix in compiled code, by format. A format without a kernel is missing."""
BF16, F32 = IDS["bf16"], IDS["f32"]
INTEGER_FORMATS = {IDS[name]: fmt for name, fmt in FORMATS.items() if isinstance(fmt, IntegerFormat)}


def block_bytes(fmt: IntegerFormat) -> int:
    """Bytes of codes for 16 rows and 32 columns."""
    return TILE_ROWS * BLOCK * fmt.stored_bits // 8


def scale_bytes(fmt: IntegerFormat) -> int:
    """Bytes of the scales of 16 rows."""
    return TILE_ROWS * fmt.scale_dtype.itemsize


def has_scale_per_block(fmt: IntegerFormat) -> bool:
    """Whether the groups of a format are always the blocks of the activations."""
    return fmt.group_sizes == (BLOCK,)
