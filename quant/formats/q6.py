"""q6: 6-bit codes in groups of 32 with a signed 8-bit group scale, 6.25 bits per weight plus one f32 per row.

Layout: `quant.formats.integer`, with

    codes       u8  q + 32; q in -32..31
    scales      i8  -127..127
    row_scales  f32

    value = row_scale * scale * q

The scale is signed because the codes reach further below 0 than above: a negative scale mirrors them. A GPU stores the
same values as q8 (`quant.formats.widening`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.formats.format import PackedTensor, require
from quant.formats.integer import GroupedFormat
from quant.formats.q8 import Q8

GROUP_SIZE = 32
ZERO = 32
CODE_MIN, CODE_MAX = -32, 31
SCALE_MAX = 127

Q6 = GroupedFormat(
    name="q6",
    quantiser="quant.quantisers.q6",
    bits=6,
    group_sizes=(GROUP_SIZE,),
    scale="int8",
    zero=ZERO,
    row_scales=True,
    widened=Q8,
    container_version=2,
)


def pack(codes: NDArray[np.int8], scales: NDArray[np.int8], row_scales: NDArray[np.float32]) -> PackedTensor:
    """Pack codes (N, K) -32..31, scales (N, K/32) -127..127 and row scales (N,). Raises FormatError on a mismatch."""
    in_range = int(codes.min()) >= CODE_MIN and int(codes.max()) <= CODE_MAX
    require(in_range, f"q6 codes must be {CODE_MIN}..{CODE_MAX}")
    require(int(scales.min()) >= -SCALE_MAX, f"q6 scales must be {-SCALE_MAX}..{SCALE_MAX}")
    return Q6.pack((codes + np.int8(ZERO)).astype(np.uint8), scales, GROUP_SIZE, row_scales=row_scales)


def unpack(packed: PackedTensor) -> tuple[NDArray[np.int8], NDArray[np.int8], NDArray[np.float32]]:
    """Return codes (N, K), scales (N, K/32) and row scales (N,): the inverse of `pack`."""
    codes = Q6.codes(packed).astype(np.int8) - np.int8(ZERO)
    return codes, Q6.scales(packed), Q6.row_scales_of(packed)
