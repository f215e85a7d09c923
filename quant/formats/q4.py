"""q4: 4-bit codes of a 16-entry codebook in groups of 32, 4.25 bits per weight plus one f32 per row.

Layout: `quant.formats.integer`, with

    scales      i8  byte = (s << 1) | bit; s is a signed 7-bit scale, -64..63; bit selects the table
    row_scales  f32

    value = row_scale * s * (CODEBOOK[code] + SHIFT * bit)

The two tables differ by a constant, so a kernel can treat the table bit as a zero point: with the unsigned table
U = CODEBOOK + 128, `value = row_scale * s * (U[code] - zero)` where `zero = 128 - SHIFT * bit`.

The scale is signed because the codebook is asymmetric: a negative scale mirrors it. CODEBOOK and SHIFT are the
least-squares (Lloyd) optimum, rounded to integers, for groups of 32 with the best choice of table and sign. The weights
were 70 % Gaussian and 30 % heavy-tailed (Student's t, 8 degrees of freedom).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.formats.format import PackedTensor, require
from quant.formats.integer import IntegerFormat

GROUP_SIZE = 32
SCALE_MIN, SCALE_MAX = -64, 63
CODEBOOK: NDArray[np.int8] = np.array(
    [-127, -93, -73, -58, -45, -32, -21, -10, 0, 11, 22, 34, 48, 63, 82, 103], dtype=np.int8
)
SHIFT = 7
_ZERO = 128

Q4 = IntegerFormat(
    name="q4",
    quantiser="quant.quantisers.q4",
    bits=4,
    group_sizes=(GROUP_SIZE,),
    scale="int8",
    zero=_ZERO,
    table=tuple(int(level) + _ZERO for level in CODEBOOK),
    shift=SHIFT,
    row_scales=True,
)


def pack(
    codes: NDArray[np.uint8], scales: NDArray[np.int8], bits: NDArray[np.uint8], row_scales: NDArray[np.float32]
) -> PackedTensor:
    """Pack a q4 matrix.

    Args:
        codes: (N, K), 0..15.
        scales: (N, K/32), -64..63.
        bits: table bits, (N, K/32), 0 or 1.
        row_scales: (N,).

    Raises:
        FormatError: the shapes do not fit, or a value is out of range.
    """
    require(scales.shape == bits.shape, f"q4 scales and table bits must both have the shape {scales.shape}")
    require(int(bits.max()) <= 1, "q4 table bits must be 0..1")
    in_range = int(scales.min()) >= SCALE_MIN and int(scales.max()) <= SCALE_MAX
    require(in_range, f"q4 scales must be {SCALE_MIN}..{SCALE_MAX}")
    scale_bytes = ((scales.astype(np.int16) << 1) | bits.astype(np.int16)).astype(np.int8)
    return Q4.pack(codes, scale_bytes, GROUP_SIZE, row_scales=row_scales)


def unpack(
    packed: PackedTensor,
) -> tuple[NDArray[np.uint8], NDArray[np.int8], NDArray[np.uint8], NDArray[np.float32]]:
    """Return codes (N, K), scales (N, K/32), table bits (N, K/32) and row scales (N,): the inverse of `pack`."""
    scale_bytes = Q4.scales(packed)
    bits = (scale_bytes & 1).astype(np.uint8)
    return Q4.codes(packed), scale_bytes >> 1, bits, Q4.row_scales_of(packed)
