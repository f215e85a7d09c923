"""min4, k4, k8, iq4 and iq4k: homes of quantised formats of GGUF files. No quantiser makes them from float values.

Layout: `quant.formats.integer`, with groups of 32 columns. Values, and the types of GGUF that the formats store:

    min4  scale * code + minimum                                          f16 scales and minimums     Q4_1
    k4    (super_scale * scale) * code - super_minimum * minimum          u8 scales and minimums      Q4_K
    k8    the same, with codes of 5 bits in bytes                                                     Q5_K
    iq4   scale * IQ4_LEVELS[code]                                        f16 scales                  IQ4_NL
    iq4k  (super_scale * scale) * IQ4_LEVELS[code]                        i8 scales                   IQ4_XS

All products of scales and codes are exact in float32, and so are those of minimums. The last step, the addition of the
minimum, is rounded once: the values are those of the GGUF file, bit for bit.
"""

from __future__ import annotations

from quant.formats.integer import GroupedFormat

GROUP_SIZE = 32
IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_ZERO = 128
_IQ4_TABLE = tuple(level + _ZERO for level in IQ4_LEVELS)

MIN4 = GroupedFormat(name="min4", bits=4, group_sizes=(GROUP_SIZE,), scale="float16", zero=0, minimum_sign=1, gpu=False)
K4 = GroupedFormat(
    name="k4", bits=4, group_sizes=(GROUP_SIZE,), scale="uint8", zero=0, minimum_sign=-1, super_scales=True, gpu=False
)
K8 = GroupedFormat(
    name="k8", bits=5, group_sizes=(GROUP_SIZE,), scale="uint8", zero=0, minimum_sign=-1, super_scales=True, gpu=False
)
IQ4 = GroupedFormat(
    name="iq4", bits=4, group_sizes=(GROUP_SIZE,), scale="float16", zero=_ZERO, table=_IQ4_TABLE, gpu=False
)
IQ4K = GroupedFormat(
    name="iq4k",
    bits=4,
    group_sizes=(GROUP_SIZE,),
    scale="int8",
    zero=_ZERO,
    table=_IQ4_TABLE,
    super_scales=True,
    gpu=False,
)
