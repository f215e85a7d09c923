"""The packed tensor formats: one file per layout, one registry, plain NumPy.

`layout` says which parts a tensor has, `check` compares a tensor with it, `dequantise` gives float32 back. Packing is
in the module of each format, since each starts from something else.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.errors import FormatError
from quant.formats import dense, linear, q4, q8
from quant.formats.base import Layout, PackedTensor, check_parts

FORMATS = ("q4", "q8", "lin4", "lin8", "bf16", "f32", "vector")

__all__ = ["FORMATS", "Layout", "PackedTensor", "check", "dequantise", "dequantise_rows", "layout"]


def layout(name: str, shape: tuple[int, ...], group_size: int = 0, zeros: bool = False) -> Layout:
    """Part name -> (dtype, shape) of a tensor of plain `shape` in format `name`.

    `zeros` asks for zero points, which lin4 and lin8 may have. Raises FormatError for an
    unknown format, or a shape or group size that does not fit it.
    """
    if name == q4.NAME:
        return q4.layout(shape, group_size, zeros)
    if name == q8.NAME:
        return q8.layout(shape, group_size, zeros)
    if name in linear.BITS:
        return linear.layout(name, shape, group_size, zeros)
    if name in FORMATS:
        return dense.layout(name, shape, group_size, zeros)
    raise FormatError(f"unknown tensor format {name!r}; known are {', '.join(FORMATS)}")


def check(packed: PackedTensor) -> None:
    """Raise FormatError unless the parts of `packed` have the names, dtypes and shapes of its layout."""
    check_parts(packed, layout(packed.format, packed.shape, packed.group_size, zeros="zeros" in packed.parts))


def dequantise(packed: PackedTensor) -> NDArray[np.float32]:
    """The float32 values of `packed`, (N, K) or (n,)."""
    check(packed)
    if packed.format == q4.NAME:
        return q4.dequantise(packed)
    if packed.format == q8.NAME:
        return q8.dequantise(packed)
    if packed.format in linear.BITS:
        return linear.dequantise(packed)
    return dense.dequantise(packed)


def dequantise_rows(packed: PackedTensor, row_ids: NDArray[np.integer] | list[int]) -> NDArray[np.float32]:
    """The rows `row_ids` of a matrix as (len(row_ids), K) float32; reads only the tiles that hold them.

    Raises FormatError for a row outside 0..N-1.
    """
    rows = np.asarray(row_ids, dtype=np.int64)
    count = packed.shape[0]
    if len(packed.shape) != 2:
        raise FormatError(f"rows are taken from matrices; this tensor has the shape {packed.shape}")
    if rows.size and (int(rows.min()) < 0 or int(rows.max()) >= count):
        raise FormatError(f"row ids must be 0..{count - 1}; got {int(rows.min())}..{int(rows.max())}")
    if not rows.size:
        return np.empty((0, packed.shape[1]), dtype=np.float32)
    tiles, position = np.unique(rows // 16, return_inverse=True)
    few = PackedTensor(
        format=packed.format,
        shape=(16 * tiles.size, packed.shape[1]),
        group_size=packed.group_size,
        parts={name: np.ascontiguousarray(part[tiles]) for name, part in packed.parts.items()},
    )
    chosen: NDArray[np.float32] = dequantise(few)[16 * position.reshape(-1) + rows % 16]
    return chosen
