"""Unquantised formats: bf16 and f32 matrices in tiles, f32 vectors.

Layout (tiles of 16 rows, see `quant.formats.format`; no groups):

    bf16    values u16 (tiles, K, 16)   element (t, k, r) = bfloat16 bits of row 16t+r, column k
    f32     values f32 (tiles, K, 16)
    vector  values f32 (n,)             norms and biases
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats.format import (
    TILE_ROWS,
    Format,
    Layout,
    PackedTensor,
    from_tiles,
    matrix_shape,
    pad_rows,
    require,
    to_tiles,
)

_QUANTISER = "quant.quantisers.dense"


def bf16_to_f32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Convert bfloat16 bits to float32. This is exact: they are the upper half of the float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


@dataclass(frozen=True, kw_only=True)
class MatrixFormat(Format):
    """Record of a format that stores the values of a matrix as bfloat16 bits or float32."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the part `values`."""
        return np.dtype(np.uint16 if self.kernel == "bf16" else np.float32)

    def layout(self, shape: tuple[int, ...], group_size: int = 0, zeros: bool = False) -> Layout:
        """Return the part of an (N, K) matrix. Raises FormatError if the shape does not fit."""
        require(not zeros, f"format {self.name} has no zero points")
        tiles, columns, _ = matrix_shape(self.name, shape, group_size, (0,))
        return {"values": (self.dtype, (tiles, columns, TILE_ROWS))}

    def pack(self, values: NDArray[Any]) -> PackedTensor:
        """Pack an (N, K) matrix of type `dtype`. Raises FormatError for another type or shape."""
        self.layout(values.shape)
        require(values.dtype == self.dtype, f"format {self.name} packs {self.dtype}, not {values.dtype}")
        return PackedTensor(self.name, values.shape, 0, {"values": to_tiles(pad_rows(values))})

    def dequantise(self, packed: PackedTensor) -> NDArray[np.float32]:
        """Return the values (N, K) as float32."""
        plain = from_tiles(packed.parts["values"])[: packed.shape[0]]
        return bf16_to_f32(plain) if self.kernel == "bf16" else plain


@dataclass(frozen=True, kw_only=True)
class VectorFormat(Format):
    """Record of the format of float32 vectors."""

    def layout(self, shape: tuple[int, ...], group_size: int = 0, zeros: bool = False) -> Layout:
        """Return the part of an (n,) vector. Raises FormatError if the shape does not fit."""
        require(not zeros, f"format {self.name} has no zero points")
        is_vector = len(shape) == 1 and shape[0] >= 1
        require(is_vector, f"format {self.name} stores vectors, not tensors of shape {shape}")
        require(group_size == 0, f"format {self.name} does not have groups, but the group size is {group_size}")
        return {"values": (np.dtype(np.float32), shape)}

    def pack(self, values: NDArray[np.float32]) -> PackedTensor:
        """Pack an (n,) vector."""
        self.layout(values.shape)
        return PackedTensor(self.name, values.shape, 0, {"values": np.array(values, dtype=np.float32)})

    def dequantise(self, packed: PackedTensor) -> NDArray[np.float32]:
        """Return the values (n,) as float32."""
        return packed.parts["values"].copy()


BF16 = MatrixFormat(name="bf16", quantiser=_QUANTISER, bits=16, kernel="bf16")
F32 = MatrixFormat(name="f32", quantiser=_QUANTISER, bits=32, kernel="f32")
VECTOR = VectorFormat(name="vector", quantiser=_QUANTISER, bits=32)
