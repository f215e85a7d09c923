"""Tensors in a wider format with the same values, for devices that have no kernels for the narrow one.

A record names the wider format (`Format.widened`). The scale of a group becomes its magnitude, and the numbers of a
group with a negative scale change their signs:

    row_scale * scale * q  ==  row_scale * abs(scale) * (q if scale >= 0 else -q)

Both sides are equal in float32, apart from the sign of a zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats.format import TILE_ROWS, Format, Layout, PackedTensor, unpack_sixes
from quant.formats.integer import QUAD, SIX_BITS, GroupedFormat


def device_layout(fmt: Format, parts: Layout) -> tuple[Format, Layout]:
    """Return the format in which a GPU stores a tensor of format `fmt`, and its parts.

    Args:
        fmt: format of the tensor.
        parts: its parts.
    """
    wide = fmt.widened
    if wide is None:
        return fmt, parts
    (tiles, groups, _), group_size = parts["scales"][1], wide.group_sizes[0]
    return wide, wide.layout((tiles * TILE_ROWS, groups * group_size), group_size)


def widen_tiles(fmt: Format, packed: PackedTensor, first: int, last: int) -> dict[str, NDArray[Any]]:
    """Return the parts of tiles `first` to `last`, exclusive, in the format `fmt.widened`, in the order of its layout.

    Args:
        fmt: format of the tensor.
        packed: the tensor.
        first: first tile.
        last: tile after the last one.
    """
    wide = fmt.widened
    assert isinstance(fmt, GroupedFormat)
    assert isinstance(wide, GroupedFormat)
    assert fmt.stored_bits == SIX_BITS
    parts = {name: part[first:last] for name, part in packed.parts.items()}
    codes = unpack_sixes(parts["codes"])
    tiles, groups, _ = parts["scales"].shape
    grouped = codes.reshape(tiles, groups, packed.group_size // QUAD, TILE_ROWS, QUAD)
    # -(code - zero) + wide.zero is the complement of the code plus a constant, modulo 256.
    negative = (parts["scales"] < 0)[:, :, None, :, None]
    grouped ^= np.where(negative, np.uint8(255), np.uint8(0))
    grouped += np.where(negative, np.uint8(wide.zero + fmt.zero + 1), np.uint8(wide.zero - fmt.zero))
    scales = np.abs(parts["scales"].astype(np.int16)).astype(wide.scale_dtype)
    return {"codes": codes, "scales": scales, "row_scales": parts["row_scales"]}
