"""q4: 4-bit codes of a 16-entry codebook in groups of 32, 4.25 bits per weight plus one f32 per row.

Layout (tiles of 16 rows, see `quant.formats.base`):

    codes       u8  (tiles, K/8, 16, 4)  byte (t, b, r, j): low nibble = code of row 16t+r, column 8b+j;
                                         high nibble = code of the same row, column 8b+4+j
    scales      i8  (tiles, K/32, 16)    byte = (s << 1) | bit: s signed 7 bits, -64..63; bit picks the table
    row_scales  f32 (tiles, 16)

    value = row_scale * s * (CODEBOOK[code] + SHIFT * bit)

The two tables differ by a constant, so the table bit is a zero point for a kernel: with the unsigned table
CODEBOOK + 128, ``value = row_scale * s * (U[code] - zero)`` where ``zero = 128 - SHIFT * bit``.

The scale is signed because the codebook is not symmetric: a negative scale mirrors it. CODEBOOK and SHIFT are the
least-squares (Lloyd) optimum, rounded to integers, for groups of 32 with the best of both tables and both signs, over
70 % Gaussian and 30 % heavier-tailed (Student t, 8 degrees of freedom) weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.formats.base import (
    Layout,
    PackedTensor,
    from_tiles,
    matrix_shape,
    pack_nibbles,
    pad_rows,
    require,
    to_tiles,
    unpack_nibbles,
)

NAME = "q4"
GROUP_SIZE = 32
SCALE_MIN, SCALE_MAX = -64, 63
CODEBOOK: NDArray[np.int8] = np.array(
    [-127, -93, -73, -58, -45, -32, -21, -10, 0, 11, 22, 34, 48, 63, 82, 103], dtype=np.int8
)
SHIFT = 7
ZERO_CODE = int(np.flatnonzero(CODEBOOK == 0)[0])


def layout(shape: tuple[int, ...], group_size: int = GROUP_SIZE, zeros: bool = False) -> Layout:
    """Parts of an (N, K) matrix. Raises FormatError for a shape or group size that does not fit."""
    require(not zeros, "format q4 has no zero points")
    tiles, columns, _ = matrix_shape(NAME, shape, group_size, (GROUP_SIZE,))
    return {
        "codes": (np.dtype(np.uint8), (tiles, columns // 8, 16, 4)),
        "scales": (np.dtype(np.int8), (tiles, columns // GROUP_SIZE, 16)),
        "row_scales": (np.dtype(np.float32), (tiles, 16)),
    }


def pack(
    codes: NDArray[np.uint8], scales: NDArray[np.int8], bits: NDArray[np.uint8], row_scales: NDArray[np.float32]
) -> PackedTensor:
    """Pack codes (N, K) 0..15, scales (N, K/32) -64..63, table bits (N, K/32) 0..1 and row scales (N,)."""
    rows, columns = codes.shape
    groups = (rows, columns // GROUP_SIZE)
    layout((rows, columns))
    require(scales.shape == groups and bits.shape == groups, f"q4 scales and table bits must be {groups}")
    require(row_scales.shape == (rows,), f"q4 row scales must be ({rows},)")
    require(int(codes.max()) <= 15 and int(bits.max()) <= 1, "q4 codes must be 0..15 and table bits 0..1")
    require(int(scales.min()) >= SCALE_MIN and int(scales.max()) <= SCALE_MAX, "q4 scales must be -64..63")
    scale_bytes = ((scales.astype(np.int16) << 1) | bits.astype(np.int16)).astype(np.int8)
    return PackedTensor(
        format=NAME,
        shape=(rows, columns),
        group_size=GROUP_SIZE,
        parts={
            "codes": pack_nibbles(pad_rows(codes, fill=ZERO_CODE)),
            "scales": to_tiles(pad_rows(scale_bytes)),
            "row_scales": pad_rows(row_scales.astype(np.float32)).reshape(-1, 16),
        },
    )


def unpack(
    packed: PackedTensor,
) -> tuple[NDArray[np.uint8], NDArray[np.int8], NDArray[np.uint8], NDArray[np.float32]]:
    """The inverse of `pack`: codes (N, K), scales (N, K/32), table bits (N, K/32), row scales (N,)."""
    rows = packed.shape[0]
    scale_bytes = from_tiles(packed.parts["scales"])[:rows]
    return (
        unpack_nibbles(packed.parts["codes"])[:rows],
        scale_bytes >> 1,
        (scale_bytes & 1).astype(np.uint8),
        packed.parts["row_scales"].reshape(-1)[:rows].copy(),
    )


def dequantise(packed: PackedTensor) -> NDArray[np.float32]:
    """(N, K) float32 values: the f32 product row_scale * s first, times the exact integer table value."""
    codes, scales, bits, row_scales = unpack(packed)
    table = np.stack([CODEBOOK, CODEBOOK + np.int8(SHIFT)]).astype(np.float32)
    values = table[np.repeat(bits, GROUP_SIZE, axis=1), codes]
    group_scales = row_scales[:, None] * scales.astype(np.float32)
    return values * np.repeat(group_scales, GROUP_SIZE, axis=1)
