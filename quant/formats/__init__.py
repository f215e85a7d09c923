"""Packed tensor formats: one record per format, one registry, plain NumPy.

Quantisers, policy, container and kernels know the formats only through `FORMATS`. `layout` returns the parts of a
tensor, `check_packed` compares a tensor with its layout, and `dequantise` returns float32 values. Each format has its
own packing function, since the inputs differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import FormatError
from quant.formats.dense import BF16, F32, VECTOR
from quant.formats.format import TILE_ROWS, Format, Layout, PackedTensor, check_parts
from quant.formats.imported import IQ4, IQ4K, K4, K8, MIN4
from quant.formats.integer import GroupedFormat, IntegerFormat
from quant.formats.linear import LIN4, LIN8
from quant.formats.q4 import Q4
from quant.formats.q6 import Q6
from quant.formats.q8 import Q8

FORMATS: dict[str, Format] = {
    record.name: record for record in (Q4, Q6, Q8, LIN4, LIN8, BF16, F32, MIN4, K4, K8, IQ4, IQ4K, VECTOR)
}
"""Format records by name. If several match the requested bits and group size, `quant.policy` uses the first."""

__all__ = [
    "FORMATS",
    "Format",
    "GroupedFormat",
    "IntegerFormat",
    "Layout",
    "PackedTensor",
    "check_packed",
    "dequantise",
    "dequantise_parts",
    "dequantise_rows",
    "find_format",
    "layout",
]


def find_format(name: str) -> Format:
    """Return the record of format `name`. Raises FormatError for an unknown name."""
    try:
        return FORMATS[name]
    except KeyError:
        raise FormatError(f"unknown tensor format {name!r}; known formats: {', '.join(FORMATS)}") from None


def layout(name: str, shape: tuple[int, ...], group_size: int = 0, zeros: bool = False) -> Layout:
    """Return the parts of a tensor in format `name`.

    Args:
        name: name of the format.
        shape: plain shape of the tensor, (N, K) or (n,).
        group_size: weights of a row that share a scale, or 0.
        zeros: whether the tensor stores zero points.

    Raises:
        FormatError: the format is unknown, or shape, group size or zero points do not fit it.
    """
    return find_format(name).layout(shape, group_size, zeros)


def check_packed(packed: PackedTensor) -> None:
    """Raise FormatError unless the parts of `packed` have the names, dtypes and shapes of its layout."""
    check_parts(packed, layout(packed.format, packed.shape, packed.group_size, zeros="zeros" in packed.parts))


def dequantise(packed: PackedTensor) -> NDArray[np.float32]:
    """Return the float32 values of `packed`, (N, K) or (n,). Raises FormatError if its parts do not fit."""
    check_packed(packed)
    return find_format(packed.format).dequantise(packed)


def dequantise_parts(name: str, parts: Mapping[str, NDArray[Any]], group_size: int) -> NDArray[np.float32]:
    """Return the float32 values of plain parts, as in `GroupedFormat.values`.

    Raises:
        FormatError: the format is unknown, or its tensors do not consist of codes.
    """
    fmt = find_format(name)
    if not isinstance(fmt, GroupedFormat):
        raise FormatError(f"format {name} does not store codes")
    return fmt.values(parts, group_size)


def dequantise_rows(packed: PackedTensor, row_ids: NDArray[np.integer] | list[int]) -> NDArray[np.float32]:
    """Return the given rows of a matrix as (len(row_ids), K) f32. Read only the tiles that contain them.

    Raises:
        FormatError: `packed` is not a matrix, or a row id is outside 0..N-1.
    """
    rows = np.asarray(row_ids, dtype=np.int64)
    count = packed.shape[0]
    if len(packed.shape) != 2:
        raise FormatError(f"only matrices have rows; the shape of this tensor is {packed.shape}")
    if rows.size and (int(rows.min()) < 0 or int(rows.max()) >= count):
        raise FormatError(f"row ids must be 0..{count - 1}; got {int(rows.min())}..{int(rows.max())}")
    if not rows.size:
        return np.empty((0, packed.shape[1]), dtype=np.float32)
    tiles, position = np.unique(rows // TILE_ROWS, return_inverse=True)
    subset = PackedTensor(
        format=packed.format,
        shape=(TILE_ROWS * tiles.size, packed.shape[1]),
        group_size=packed.group_size,
        parts={name: np.ascontiguousarray(part[tiles]) for name, part in packed.parts.items()},
    )
    selected: NDArray[np.float32] = dequantise(subset)[TILE_ROWS * position.reshape(-1) + rows % TILE_ROWS]
    return selected
