"""Integer formats: codes of 1 to 8 bits, in groups of weights of a row that share a scale.

Layout (tiles of 16 rows, see `quant.formats.format`; G is the group size):

    codes       u8  (tiles, K/8, 16, 4)  up to 4 bits. Byte (t, b, r, j): the low nibble is the code of row 16t+r,
                                         column 8b+j; the high nibble is the code of the same row, column 8b+4+j
                    (tiles, K/4, 16, 4)  5 to 8 bits. Byte (t, b, r, j) is the code of row 16t+r, column 4b+j
    scales      i8, u8 or f16 (tiles, K/G, 16)
    zeros       u8  (tiles, K/G, 16)     if the tensor stores zero points
    row_scales  f32 (tiles, 16)          if the format has them

    value = row_scale * scale * (level - zero)

The level is the code itself or its entry in a table. In a format with a table bit, the lowest bit of a scale byte
subtracts a constant from the zero point, and the upper seven bits are the scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quant.formats.format import (
    TILE_ROWS,
    Format,
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

NIBBLE_BITS = 4
BYTE_BITS = 8
QUAD = 4
"""Adjacent columns of one row."""

Scale = Literal["int8", "uint8", "float16"]


@dataclass(frozen=True, kw_only=True)
class IntegerFormat(Format):
    """Record of an integer format. Its layout and arithmetic follow from these fields.

    Attributes:
        scale: type of a group scale.
        zero: zero point of tensors that do not store zero points.
        table: level of each code, 0..255. None if a code is its own level. Only for codes of 4 bits.
        shift: amount that the table bit subtracts from the zero point. 0 without a table bit. Needs int8 scales.
        allows_zeros: whether tensors may store zero points.
        row_scales: whether each row has a float32 scale that multiplies its group scales.
    """

    scale: Scale
    zero: int
    table: tuple[int, ...] | None = None
    shift: int = 0
    allows_zeros: bool = False
    row_scales: bool = False
    kernel: Literal["integer", "bf16", "f32"] | None = "integer"

    def __post_init__(self) -> None:
        """Raise ValueError if the fields contradict each other."""
        levels = tuple(range(self.largest_code + 1)) if self.table is None else self.table
        rules = {
            "codes have 1 to 8 bits": 1 <= self.bits <= BYTE_BITS,
            "there is a group size": bool(self.group_sizes),
            "only codes of 4 bits have a table": self.table is None or self.bits == NIBBLE_BITS,
            "a table has a level for each code": len(levels) == self.largest_code + 1,
            "levels lie within 0..255": min(levels) >= 0 and max(levels) < 1 << BYTE_BITS,
            "the zero point is a level": self.zero in levels,
            "a table bit needs int8 scales": not self.shift or self.scale == "int8",
            "a table bit excludes zero points": not (self.shift and self.allows_zeros),
            "a quantiser stores zero points only where they are allowed": self.allows_zeros or not self.stores_zeros,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(f"the record of format {self.name} breaks a rule: {rule}")

    @property
    def stored_bits(self) -> int:
        """Bits per code in the part `codes`: 4 or 8."""
        return NIBBLE_BITS if self.bits <= NIBBLE_BITS else BYTE_BITS

    @property
    def largest_code(self) -> int:
        """Largest code."""
        return (1 << self.bits) - 1

    @property
    def largest(self) -> int:
        """Largest level."""
        return self.largest_code if self.table is None else max(self.table)

    @property
    def scale_dtype(self) -> np.dtype[Any]:
        """Type of the part `scales`."""
        return np.dtype(self.scale)

    def effective_bits(self, group_size: int) -> float:
        """Return the bits per weight of long rows from the quantiser: code, scale and zero point."""
        group_bits = BYTE_BITS * (self.scale_dtype.itemsize + self.stores_zeros)
        return self.stored_bits + group_bits / group_size

    def layout(self, shape: tuple[int, ...], group_size: int = 0, zeros: bool = False) -> Layout:
        """Return the parts of an (N, K) matrix. Raises FormatError if shape, group size or zero points do not fit."""
        require(self.allows_zeros or not zeros, f"format {self.name} has no zero points")
        tiles, columns, _ = matrix_shape(self.name, shape, group_size, self.group_sizes)
        per_line = QUAD * BYTE_BITS // self.stored_bits
        groups = (tiles, columns // group_size, TILE_ROWS)
        parts: Layout = {
            "codes": (np.dtype(np.uint8), (tiles, columns // per_line, TILE_ROWS, QUAD)),
            "scales": (self.scale_dtype, groups),
        }
        if zeros:
            parts["zeros"] = (np.dtype(np.uint8), groups)
        if self.row_scales:
            parts["row_scales"] = (np.dtype(np.float32), (tiles, TILE_ROWS))
        return parts

    def pack(
        self,
        codes: NDArray[np.uint8],
        scales: NDArray[Any],
        group_size: int,
        *,
        zeros: NDArray[np.uint8] | None = None,
        row_scales: NDArray[np.float32] | None = None,
    ) -> PackedTensor:
        """Pack the arrays of a matrix. Padding rows get the code of the zero point and the scale 0.

        Args:
            codes: (N, K) u8.
            scales: (N, K/G), in the type of the format or convertible to it.
            group_size: weights per scale, G.
            zeros: (N, K/G) u8, or None to store no zero points.
            row_scales: (N,) f32, for formats that have row scales.

        Raises:
            FormatError: the shapes do not fit, or a code or zero point is too large.
        """
        rows, columns = codes.shape
        self.layout((rows, columns), group_size, zeros is not None)
        groups = (rows, columns // group_size)
        top = self.largest_code
        require(scales.shape == groups, f"{self.name} scales must have the shape {groups}")
        require(int(codes.max()) <= top, f"{self.name} codes must be 0..{top}")
        fill = self.zero if self.table is None else self.table.index(self.zero)
        pack = pack_nibbles if self.stored_bits == NIBBLE_BITS else to_quads
        parts = {
            "codes": pack(pad_rows(codes, fill=fill)),
            "scales": to_tiles(pad_rows(scales.astype(self.scale_dtype))),
        }
        if zeros is not None:
            fits = zeros.shape == groups and int(zeros.max()) <= top
            require(fits, f"{self.name} zeros must have the shape {groups} and values 0..{top}")
            parts["zeros"] = to_tiles(pad_rows(zeros.astype(np.uint8), fill=self.zero))
        if self.row_scales:
            require(
                row_scales is not None and row_scales.shape == (rows,),
                f"{self.name} row scales must have the shape ({rows},)",
            )
            parts["row_scales"] = pad_rows(np.asarray(row_scales, np.float32)).reshape(-1, TILE_ROWS)
        return PackedTensor(format=self.name, shape=(rows, columns), group_size=group_size, parts=parts)

    def plain_parts(self, packed: PackedTensor) -> dict[str, NDArray[Any]]:
        """Return the stored parts with one row per row of the matrix: the inverse of `pack`."""
        parts: dict[str, NDArray[Any]] = {"codes": self.codes(packed), "scales": self.scales(packed)}
        if "zeros" in packed.parts:
            parts["zeros"] = self.zeros(packed)
        if self.row_scales:
            parts["row_scales"] = self.row_scales_of(packed)
        return parts

    def codes(self, packed: PackedTensor) -> NDArray[np.uint8]:
        """Return the codes (N, K)."""
        unpack = unpack_nibbles if self.stored_bits == NIBBLE_BITS else from_quads
        return unpack(packed.parts["codes"])[: packed.shape[0]]

    def scales(self, packed: PackedTensor) -> NDArray[Any]:
        """Return the scales (N, K/G) as stored."""
        return from_tiles(packed.parts["scales"])[: packed.shape[0]]

    def zeros(self, packed: PackedTensor) -> NDArray[np.uint8]:
        """Return the zero points (N, K/G). Without stored zero points, all equal the default `zero`."""
        if "zeros" in packed.parts:
            return from_tiles(packed.parts["zeros"])[: packed.shape[0]]
        return np.full((packed.shape[0], packed.shape[1] // packed.group_size), self.zero, dtype=np.uint8)

    def row_scales_of(self, packed: PackedTensor) -> NDArray[np.float32]:
        """Return the row scales (N,). Only for formats that have them."""
        return packed.parts["row_scales"].reshape(-1)[: packed.shape[0]].copy()

    def dequantise(self, packed: PackedTensor) -> NDArray[np.float32]:
        """Return the values (N, K) as float32, as `values` does."""
        return self.values(self.plain_parts(packed), packed.group_size)

    def values(self, parts: Mapping[str, NDArray[Any]], group_size: int) -> NDArray[np.float32]:
        """Return the values (N, K) of plain parts as float32. NaN and Inf pass through.

        The float32 product of row scale and group scale is multiplied by the exact integer `level - zero`.

        Args:
            parts: arguments of `pack` by name: "codes" (N, K), "scales" (N, K/G) and the others that the format has.
            group_size: weights per scale, G.
        """
        codes, scales = parts["codes"], parts["scales"]
        zeros = parts["zeros"].astype(np.int16) if "zeros" in parts else np.full(scales.shape, self.zero, np.int16)
        if self.shift:
            zeros -= np.int16(self.shift) * (scales & 1)
            scales = scales >> 1
        scales = scales.astype(np.float32)
        if self.row_scales:
            scales = parts["row_scales"][:, None] * scales
        levels = codes if self.table is None else np.array(self.table, np.uint8)[codes]
        centred = levels.astype(np.int16) - np.repeat(zeros, group_size, axis=1)
        with np.errstate(invalid="ignore"):  # the scales of a damaged source may be infinite
            values: NDArray[np.float32] = centred.astype(np.float32) * np.repeat(scales, group_size, axis=1)
        return values
