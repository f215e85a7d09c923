"""q8: signed bytes in groups of 32 with an unsigned 8-bit group scale, 8.25 bits per weight plus one f32 per row.

Layout: `quant.formats.integer`, with

    codes       u8  q + 128; q in -127..127
    scales      u8
    row_scales  f32

    value = row_scale * scale * q
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.formats.format import PackedTensor, require
from quant.formats.integer import IntegerFormat

GROUP_SIZE = 32
ZERO = 128
CODE_MAX = 127
SCALE_MAX = 255

Q8 = IntegerFormat(
    name="q8",
    quantiser="quant.quantisers.q8",
    bits=8,
    group_sizes=(GROUP_SIZE,),
    scale="uint8",
    zero=ZERO,
    row_scales=True,
)


def pack(codes: NDArray[np.int8], scales: NDArray[np.uint8], row_scales: NDArray[np.float32]) -> PackedTensor:
    """Pack codes (N, K) -127..127, scales (N, K/32) 0..255 and row scales (N,). Raises FormatError on a mismatch."""
    require(int(codes.min()) >= -CODE_MAX, f"q8 codes must be {-CODE_MAX}..{CODE_MAX}")
    unsigned = (codes.astype(np.int16) + ZERO).astype(np.uint8)
    return Q8.pack(unsigned, scales, GROUP_SIZE, row_scales=row_scales)


def unpack(packed: PackedTensor) -> tuple[NDArray[np.int8], NDArray[np.uint8], NDArray[np.float32]]:
    """Return codes (N, K), scales (N, K/32) and row scales (N,): the inverse of `pack`."""
    codes = (Q8.codes(packed).astype(np.int16) - ZERO).astype(np.int8)
    return codes, Q8.scales(packed), Q8.row_scales_of(packed)
