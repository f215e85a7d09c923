"""q8: signed bytes in groups of 32 with an unsigned 8-bit group scale, 8.25 bits per weight plus one f32 per row.

Layout (tiles of 16 rows, see `quant.formats.base`):

    codes       u8  (tiles, K/4, 16, 4)  byte (t, b, r, j) = q + 128 of row 16t+r, column 4b+j; q in -127..127
    scales      u8  (tiles, K/32, 16)
    row_scales  f32 (tiles, 16)

    value = row_scale * scale * q
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.formats.base import (
    Layout,
    PackedTensor,
    from_quads,
    from_tiles,
    matrix_shape,
    pad_rows,
    require,
    to_quads,
    to_tiles,
)

NAME = "q8"
GROUP_SIZE = 32
ZERO = 128
CODE_MAX = 127
SCALE_MAX = 255


def layout(shape: tuple[int, ...], group_size: int = GROUP_SIZE, zeros: bool = False) -> Layout:
    """Parts of an (N, K) matrix. Raises FormatError for a shape or group size that does not fit."""
    require(not zeros, "format q8 has no zero points")
    tiles, columns, _ = matrix_shape(NAME, shape, group_size, (GROUP_SIZE,))
    return {
        "codes": (np.dtype(np.uint8), (tiles, columns // 4, 16, 4)),
        "scales": (np.dtype(np.uint8), (tiles, columns // GROUP_SIZE, 16)),
        "row_scales": (np.dtype(np.float32), (tiles, 16)),
    }


def pack(codes: NDArray[np.int8], scales: NDArray[np.uint8], row_scales: NDArray[np.float32]) -> PackedTensor:
    """Pack codes (N, K) -127..127, scales (N, K/32) 0..255 and row scales (N,)."""
    rows, columns = codes.shape
    layout((rows, columns))
    require(scales.shape == (rows, columns // GROUP_SIZE), f"q8 scales must be ({rows}, {columns // GROUP_SIZE})")
    require(row_scales.shape == (rows,), f"q8 row scales must be ({rows},)")
    require(int(codes.min()) >= -CODE_MAX, "q8 codes must be -127..127")
    unsigned = (codes.astype(np.int16) + ZERO).astype(np.uint8)
    return PackedTensor(
        format=NAME,
        shape=(rows, columns),
        group_size=GROUP_SIZE,
        parts={
            "codes": to_quads(pad_rows(unsigned, fill=ZERO)),
            "scales": to_tiles(pad_rows(scales.astype(np.uint8))),
            "row_scales": pad_rows(row_scales.astype(np.float32)).reshape(-1, 16),
        },
    )


def unpack(packed: PackedTensor) -> tuple[NDArray[np.int8], NDArray[np.uint8], NDArray[np.float32]]:
    """The inverse of `pack`: codes (N, K), scales (N, K/32), row scales (N,)."""
    rows = packed.shape[0]
    codes = (from_quads(packed.parts["codes"])[:rows].astype(np.int16) - ZERO).astype(np.int8)
    return codes, from_tiles(packed.parts["scales"])[:rows], packed.parts["row_scales"].reshape(-1)[:rows].copy()


def dequantise(packed: PackedTensor) -> NDArray[np.float32]:
    """(N, K) float32 values: the f32 product row_scale * scale first, times the exact integer."""
    codes, scales, row_scales = unpack(packed)
    group_scales = row_scales[:, None] * scales.astype(np.float32)
    return codes.astype(np.float32) * np.repeat(group_scales, GROUP_SIZE, axis=1)
