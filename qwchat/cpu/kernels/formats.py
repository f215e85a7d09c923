"""How each weight format of :mod:`quant.formats` meets the matrix kernel.

All integer formats are one arithmetic (design, "One arithmetic"): unsigned weight bytes times signed activations,

    y = row_scale * sum over blocks of 32 k:  scale * x_scale * (sum(table[code] * x8) - zero * sum(x8))

and differ in how a line of codes becomes bytes, and where scale and zero come from.
"""

from __future__ import annotations

from dataclasses import dataclass

from quant.formats import q4
from qwchat.cpu.kernels.records import BLOCK

Q4, Q8, LIN4, LIN8, BF16, F32 = range(6)
IDS = {"q4": Q4, "q8": Q8, "lin4": LIN4, "lin8": LIN8, "bf16": BF16, "f32": F32}


@dataclass(frozen=True)
class IntegerFormat:
    """What the code generator needs to know of an integer format."""

    bits: int
    table: tuple[int, ...] | None  # 16 unsigned bytes, or None where the code is the byte
    scale_bytes: int  # bytes of one row's scale in a group: 1 (integer, times a row scale) or 2 (f16)
    zero: int  # the zero point where none is stored
    shift: int = 0  # what the table bit of a q4 scale subtracts from the zero point

    @property
    def largest(self) -> int:
        """The largest weight byte."""
        return 2**self.bits - 1 if self.table is None else max(self.table)

    @property
    def block_bytes(self) -> int:
        """Bytes of codes for 16 rows and 32 columns."""
        return 16 * BLOCK * self.bits // 8


INTEGER_FORMATS = {
    Q4: IntegerFormat(4, tuple(int(value) + 128 for value in q4.CODEBOOK), 1, 128, int(q4.SHIFT)),
    Q8: IntegerFormat(8, None, 1, 128),
    LIN4: IntegerFormat(4, None, 2, 8),
    LIN8: IntegerFormat(8, None, 2, 128),
}
