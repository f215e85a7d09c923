"""lin4 and lin8: integer codes with one f16 scale and an optional integer zero point per group.

Layout: `quant.formats.integer`; value = scale * (code - zero). Without stored zero points, `zero` is the middle of the
code range.
"""

from __future__ import annotations

from quant.formats.integer import IntegerFormat

_GROUP_SIZES = (32, 64, 128)
_QUANTISER = "quant.quantisers.linear"

LIN4 = IntegerFormat(
    name="lin4",
    quantiser=_QUANTISER,
    bits=4,
    group_sizes=_GROUP_SIZES,
    stores_zeros=True,
    scale="float16",
    zero=8,
    allows_zeros=True,
)
LIN8 = IntegerFormat(
    name="lin8",
    quantiser=_QUANTISER,
    bits=8,
    group_sizes=_GROUP_SIZES,
    scale="float16",
    zero=128,
    allows_zeros=True,
)
