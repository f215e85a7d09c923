"""lin4 and lin8: integer codes with one f16 scale and, if asked for, one integer zero point per group.

Layout (tiles of 16 rows, see `quant.formats.base`); G is the group size, 32, 64 or 128:

    codes   u8  lin4 (tiles, K/8, 16, 4), nibbles as in q4; lin8 (tiles, K/4, 16, 4), the unsigned code as it is
    scales  f16 (tiles, K/G, 16)
    zeros   u8  (tiles, K/G, 16), optional; absent means 8 for lin4 and 128 for lin8

    value = scale * (code - zero)
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
    pack_nibbles,
    pad_rows,
    require,
    to_quads,
    to_tiles,
    unpack_nibbles,
)

GROUP_SIZES = (32, 64, 128)
BITS = {"lin4": 4, "lin8": 8}
DEFAULT_ZERO = {"lin4": 8, "lin8": 128}


def layout(name: str, shape: tuple[int, ...], group_size: int, zeros: bool = False) -> Layout:
    """Parts of an (N, K) matrix in format `name`. Raises FormatError for a shape or group size that does not fit."""
    tiles, columns, _ = matrix_shape(name, shape, group_size, GROUP_SIZES)
    per_byte = 8 // BITS[name]
    parts: Layout = {
        "codes": (np.dtype(np.uint8), (tiles, columns // (4 * per_byte), 16, 4)),
        "scales": (np.dtype(np.float16), (tiles, columns // group_size, 16)),
    }
    if zeros:
        parts["zeros"] = (np.dtype(np.uint8), (tiles, columns // group_size, 16))
    return parts


def pack(
    name: str,
    codes: NDArray[np.uint8],
    scales: NDArray[np.float16],
    zeros: NDArray[np.uint8] | None,
    group_size: int,
) -> PackedTensor:
    """Pack codes (N, K) and scales and zeros (N, K/G); a padding row holds the zero point and a zero scale."""
    rows, columns = codes.shape
    layout(name, (rows, columns), group_size)
    groups = (rows, columns // group_size)
    limit = (1 << BITS[name]) - 1
    require(scales.shape == groups, f"{name} scales must be {groups}")
    require(int(codes.max()) <= limit, f"{name} codes must be 0..{limit}")
    zero = DEFAULT_ZERO[name]
    padded = pad_rows(codes, fill=zero)
    parts = {
        "codes": pack_nibbles(padded) if name == "lin4" else to_quads(padded),
        "scales": to_tiles(pad_rows(scales.astype(np.float16))),
    }
    if zeros is not None:
        require(zeros.shape == groups and int(zeros.max()) <= limit, f"{name} zeros must be {groups}, 0..{limit}")
        parts["zeros"] = to_tiles(pad_rows(zeros.astype(np.uint8), fill=zero))
    return PackedTensor(format=name, shape=(rows, columns), group_size=group_size, parts=parts)


def unpack(packed: PackedTensor) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.uint8]]:
    """The inverse of `pack`: codes (N, K), scales (N, K/G), zeros (N, K/G; the default where the part is absent)."""
    rows = packed.shape[0]
    read = unpack_nibbles if packed.format == "lin4" else from_quads
    codes = read(packed.parts["codes"])[:rows]
    scales = from_tiles(packed.parts["scales"])[:rows]
    if "zeros" in packed.parts:
        zeros = from_tiles(packed.parts["zeros"])[:rows]
    else:
        zeros = np.full(scales.shape, DEFAULT_ZERO[packed.format], dtype=np.uint8)
    return codes, scales, zeros


def dequantise(packed: PackedTensor) -> NDArray[np.float32]:
    """(N, K) float32 values: the scale widened to f32, times the exact integer code - zero."""
    codes, scales, zeros = unpack(packed)
    group_size = packed.group_size
    centred = codes.astype(np.float32) - np.repeat(zeros, group_size, axis=1).astype(np.float32)
    return centred * np.repeat(scales.astype(np.float32), group_size, axis=1)
