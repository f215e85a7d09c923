"""Unquantised tensors: bf16 and f32 matrices in tiles, f32 vectors.

Layout (tiles of 16 rows, see `quant.formats.base`); the group size of these formats is 0:

    bf16    values u16 (tiles, K, 16)   element (t, k, r) = bfloat16 bits of row 16t+r, column k
    f32     values f32 (tiles, K, 16)
    vector  values f32 (n,)             norms and biases
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats.base import Layout, PackedTensor, from_tiles, matrix_shape, pad_rows, require, to_tiles

_DTYPES: dict[str, np.dtype[Any]] = {"bf16": np.dtype(np.uint16), "f32": np.dtype(np.float32)}


def bf16_to_f32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 bits to float32, exactly: they are the upper half of the float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def layout(name: str, shape: tuple[int, ...], group_size: int = 0, zeros: bool = False) -> Layout:
    """Parts of a tensor in format `name`. Raises FormatError for a shape that does not fit."""
    require(not zeros, f"format {name} has no zero points")
    if name == "vector":
        require(len(shape) == 1 and shape[0] >= 1, f"format vector holds vectors; the shape {shape} is none")
        require(group_size == 0, f"format vector has no groups; group size {group_size} was given")
        return {"values": (np.dtype(np.float32), shape)}
    tiles, columns, _ = matrix_shape(name, shape, group_size, (0,))
    return {"values": (_DTYPES[name], (tiles, columns, 16))}


def pack(name: str, values: NDArray[Any]) -> PackedTensor:
    """Pack (N, K) bfloat16 bits as u16 ("bf16"), an (N, K) float32 matrix ("f32") or an (n,) vector ("vector")."""
    layout(name, values.shape)
    if name == "vector":
        part = np.array(values, dtype=np.float32)
    else:
        require(values.dtype == _DTYPES[name], f"format {name} packs {_DTYPES[name]}, not {values.dtype}")
        part = to_tiles(pad_rows(values))
    return PackedTensor(format=name, shape=values.shape, group_size=0, parts={"values": part})


def unpack(packed: PackedTensor) -> NDArray[Any]:
    """The inverse of `pack`."""
    if packed.format == "vector":
        return packed.parts["values"].copy()
    return from_tiles(packed.parts["values"])[: packed.shape[0]]


def dequantise(packed: PackedTensor) -> NDArray[np.float32]:
    """The values as float32, (N, K) or (n,)."""
    plain = unpack(packed)
    return bf16_to_f32(plain) if packed.format == "bf16" else plain.astype(np.float32, copy=False)
