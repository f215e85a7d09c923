"""Integer formats: codes of 1 to 8 bits, in groups of weights of a row that share a scale.

Layout (tiles of 16 rows, see `quant.formats.format`; G is the group size):

    codes           u8  (tiles, K/8, 16, 4)   up to 4 bits. Byte (t, b, r, j): the low nibble is the code of row 16t+r,
                                              column 8b+j; the high nibble is that of the same row, column 8b+4+j
                        (tiles, 3K/16, 16, 4) 6 bits. Byte (t, 3b+i, r, j): the low 6 bits are the code of row 16t+r,
                                              column 16b+4i+j; the high bits are bits 2i and 2i+1 of the code of the
                                              same row, column 16b+12+j
                        (tiles, K/4, 16, 4)   5, 7 and 8 bits. Byte (t, b, r, j) is the code of row 16t+r, column 4b+j
    scales          i8, u8 or f16 (tiles, K/G, 16)
    zeros           u8  (tiles, K/G, 16)      if the tensor stores zero points
    minimums        as scales                 if the format has them
    super_scales    f16 (tiles, K/256, 16)    if the format has them
    super_minimums  f16 (tiles, K/256, 16)    if the format has super scales and minimums
    row_scales      f32 (tiles, 16)           if the format has them

    value = row_scale * super_scale * scale * (level - zero) + sign * super_minimum * minimum

The level is the code itself or its entry in a table. In a format with a table bit, the lowest bit of a scale byte
subtracts a constant from the zero point, and the upper seven bits are the scale. The sign of the minimums belongs to
the format.
"""

from __future__ import annotations

import math
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
    from_tiles,
    matrix_shape,
    pack_codes,
    pad_rows,
    require,
    to_tiles,
    unpack_codes,
)

NIBBLE_BITS = 4
SIX_BITS = 6
BYTE_BITS = 8
QUAD = 4
"""Adjacent columns of one row."""
SUPER_GROUP = 256
"""Columns that share a super scale."""

Scale = Literal["int8", "uint8", "float16"]


@dataclass(frozen=True, kw_only=True)
class GroupedFormat(Format):
    """Record of a format of integer codes in groups. Its layout and arithmetic follow from these fields.

    Attributes:
        scale: type of a group scale, and of a minimum.
        zero: zero point of tensors that do not store zero points.
        table: level of each code, 0..255. None if a code is its own level. Only for codes of 4 bits.
        shift: amount that the table bit subtracts from the zero point. 0 without a table bit. Needs int8 scales.
        allows_zeros: whether tensors may store zero points.
        row_scales: whether each row has a float32 scale that multiplies its group scales.
        minimum_sign: 1 if the minimum of a group is added to its values, -1 if it is subtracted, 0 without minimums.
        super_scales: whether 256 columns share a float16 scale that multiplies their group scales and, in a format with
            minimums, another one that multiplies these.
    """

    scale: Scale
    zero: int
    table: tuple[int, ...] | None = None
    shift: int = 0
    allows_zeros: bool = False
    row_scales: bool = False
    minimum_sign: Literal[-1, 0, 1] = 0
    super_scales: bool = False
    kernel: Literal["integer", "bf16", "f32"] | None = "integer"

    def __post_init__(self) -> None:
        """Raise ValueError if the fields contradict each other."""
        for rule, holds in self._rules().items():
            if not holds:
                raise ValueError(f"the record of format {self.name} breaks a rule: {rule}")

    def _rules(self) -> dict[str, bool]:
        levels = self.levels
        return {
            "codes have 1 to 8 bits": 1 <= self.bits <= BYTE_BITS,
            "there is a group size": bool(self.group_sizes),
            "only codes of 4 bits have a table": self.table is None or self.bits == NIBBLE_BITS,
            "a table has a level for each code": len(levels) == self.largest_code + 1,
            "levels lie within 0..255": min(levels) >= 0 and max(levels) < 1 << BYTE_BITS,
            "the zero point lies within the levels": min(levels) <= self.zero <= max(levels),
            "a table bit needs int8 scales": not self.shift or self.scale == "int8",
            "a table bit excludes zero points": not (self.shift and self.allows_zeros),
            "a quantiser stores zero points only where they are allowed": self.allows_zeros or not self.stores_zeros,
            "minimums exclude zero points": not self.minimum_sign or (self.zero == 0 and not self.allows_zeros),
            "super scales multiply byte scales": not self.super_scales or self.scale != "float16",
            "super scales exclude row scales and a table bit": not self.super_scales
            or not (self.row_scales or self.shift),
        }

    @property
    def stored_bits(self) -> int:
        """Bits per code in the part `codes`: 4, 6 or 8."""
        if self.bits == SIX_BITS:
            return SIX_BITS
        return NIBBLE_BITS if self.bits <= NIBBLE_BITS else BYTE_BITS

    @property
    def largest_code(self) -> int:
        """Largest code."""
        return (1 << self.bits) - 1

    @property
    def levels(self) -> tuple[int, ...]:
        """Level of each code."""
        return tuple(range(self.largest_code + 1)) if self.table is None else self.table

    @property
    def largest(self) -> int:
        """Largest level."""
        return self.largest_code if self.table is None else max(self.table)

    @property
    def scale_dtype(self) -> np.dtype[Any]:
        """Type of the parts `scales` and `minimums`."""
        return np.dtype(self.scale)

    def effective_bits(self, group_size: int) -> float:
        """Return the bits per weight of long rows from the quantiser, without row scales."""
        shape = TILE_ROWS, math.lcm(group_size, SUPER_GROUP)
        parts = self.layout(shape, group_size, self.stores_zeros)
        stored = sum(dtype.itemsize * math.prod(part) for name, (dtype, part) in parts.items() if name != "row_scales")
        return BYTE_BITS * stored / math.prod(shape)

    def layout(self, shape: tuple[int, ...], group_size: int = 0, zeros: bool = False) -> Layout:
        """Return the parts of an (N, K) matrix. Raises FormatError if shape, group size or zero points do not fit."""
        require(self.allows_zeros or not zeros, f"format {self.name} has no zero points")
        tiles, columns, _ = matrix_shape(self.name, shape, group_size, self.group_sizes)
        lines = columns * self.stored_bits // (QUAD * BYTE_BITS)
        parts: Layout = {"codes": (np.dtype(np.uint8), (tiles, lines, TILE_ROWS, QUAD))}
        for name, (dtype, per_row) in self._factors(columns, group_size, zeros).items():
            parts[name] = dtype, (tiles, per_row, TILE_ROWS)
        if self.row_scales:
            parts["row_scales"] = (np.dtype(np.float32), (tiles, TILE_ROWS))
        return parts

    def _factors(self, columns: int, group_size: int, zeros: bool) -> dict[str, tuple[np.dtype[Any], int]]:
        """Return the type, and the number per row, of the parts besides codes and row scales, in file order."""
        groups = columns // group_size
        found: dict[str, tuple[np.dtype[Any], int]] = {"scales": (self.scale_dtype, groups)}
        if zeros:
            found["zeros"] = np.dtype(np.uint8), groups
        if self.minimum_sign:
            found["minimums"] = self.scale_dtype, groups
        if self.super_scales:
            fits = columns % SUPER_GROUP == 0
            require(fits, f"format {self.name} needs a multiple of {SUPER_GROUP} columns, not {columns}")
            for name in ("super_scales", "super_minimums") if self.minimum_sign else ("super_scales",):
                found[name] = np.dtype(np.float16), columns // SUPER_GROUP
        return found

    def pack(
        self,
        codes: NDArray[np.uint8],
        scales: NDArray[Any],
        group_size: int,
        *,
        zeros: NDArray[np.uint8] | None = None,
        row_scales: NDArray[np.float32] | None = None,
        **others: NDArray[Any],
    ) -> PackedTensor:
        """Pack the arrays of a matrix. Padding rows get the scale 0.

        Args:
            codes: (N, K) u8.
            scales: (N, K/G), in the type of the format or convertible to it.
            group_size: weights per scale, G.
            zeros: (N, K/G) u8, or None to store no zero points.
            row_scales: (N,) f32, for formats that have row scales.
            others: the other parts of the format by name, with one row per row of the matrix.

        Raises:
            FormatError: a part is missing or unknown, the shapes do not fit, or a code or zero point is too large.
        """
        rows, columns = codes.shape
        self.layout((rows, columns), group_size, zeros is not None)
        top = self.largest_code
        require(int(codes.max()) <= top, f"{self.name} codes must be 0..{top}")
        require(zeros is None or int(zeros.max()) <= top, f"{self.name} zeros must be 0..{top}")
        given = others | {"scales": scales} | ({} if zeros is None else {"zeros": zeros})
        factors = self._factors(columns, group_size, zeros is not None)
        require(given.keys() == factors.keys(), f"{self.name} has the parts {list(factors)}, not {list(given)}")
        fill = min(range(top + 1), key=lambda code: abs(self.levels[code] - self.zero))
        parts = {"codes": pack_codes(pad_rows(codes, fill=fill), self.stored_bits)}
        for name, (dtype, per_row) in factors.items():
            shape = rows, per_row
            require(given[name].shape == shape, f"{self.name} {name} must have the shape {shape}")
            padded = pad_rows(given[name].astype(dtype), fill=self.zero if name == "zeros" else 0)
            parts[name] = to_tiles(padded)
        if self.row_scales:
            require(
                row_scales is not None and row_scales.shape == (rows,),
                f"{self.name} row scales must have the shape ({rows},)",
            )
            parts["row_scales"] = pad_rows(np.asarray(row_scales, np.float32)).reshape(-1, TILE_ROWS)
        return PackedTensor(format=self.name, shape=(rows, columns), group_size=group_size, parts=parts)

    def plain_parts(self, packed: PackedTensor) -> dict[str, NDArray[Any]]:
        """Return the stored parts with one row per row of the matrix: the arguments of `pack`."""
        parts = {name: from_tiles(part)[: packed.shape[0]] for name, part in packed.parts.items() if part.ndim == 3}
        parts["codes"] = self.codes(packed)
        if self.row_scales:
            parts["row_scales"] = self.row_scales_of(packed)
        return parts

    def codes(self, packed: PackedTensor) -> NDArray[np.uint8]:
        """Return the codes (N, K)."""
        return unpack_codes(packed.parts["codes"], self.stored_bits)[: packed.shape[0]]

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

        The float32 product of the scales is multiplied by the exact integer `level - zero`; then the float32 product of
        the minimums is added or subtracted. Each step is rounded to float32.

        Args:
            parts: arguments of `pack` by name: "codes" (N, K), "scales" (N, K/G) and the others that the format has.
            group_size: weights per scale, G.
        """
        codes, scales = parts["codes"], parts["scales"]
        zeros = parts["zeros"].astype(np.int16) if "zeros" in parts else np.full(scales.shape, self.zero, np.int16)
        if self.shift:
            zeros -= np.int16(self.shift) * (scales & 1)
            scales = scales >> 1
        with np.errstate(invalid="ignore"):  # the scales of a damaged source may be infinite
            scales = self._times_super(parts, scales, "super_scales", group_size)
            if self.row_scales:
                scales = parts["row_scales"][:, None] * scales
            levels = codes if self.table is None else np.array(self.table, np.uint8)[codes]
            centred = levels.astype(np.int16) - np.repeat(zeros, group_size, axis=1)
            values: NDArray[np.float32] = centred.astype(np.float32) * np.repeat(scales, group_size, axis=1)
            if self.minimum_sign:
                minimums = self._times_super(parts, parts["minimums"], "super_minimums", group_size)
                values += self.minimum_sign * np.repeat(minimums, group_size, axis=1)
        return values

    def _times_super(
        self, parts: Mapping[str, NDArray[Any]], stored: NDArray[Any], name: str, group_size: int
    ) -> NDArray[np.float32]:
        """Return stored scales or minimums as float32, times their super scales if the format has them."""
        plain: NDArray[np.float32] = stored.astype(np.float32)
        if not self.super_scales:
            return plain
        return plain * np.repeat(parts[name].astype(np.float32), SUPER_GROUP // group_size, axis=1)


@dataclass(frozen=True, kw_only=True)
class IntegerFormat(GroupedFormat):
    """Record of a format whose values are an integer times a scale, for which every device has kernels."""

    def _rules(self) -> dict[str, bool]:
        return super()._rules() | {
            "the zero point is a level": self.zero in self.levels,
            "values are an integer times a scale": not (self.minimum_sign or self.super_scales),
        }
