"""Matrices as integer grids: value = scale * (code - zero), in groups of columns.

lin4 and lin8 are such grids as they are. Formats whose values are a scale times a whole number from -128 to 127 become
one with the whole numbers unchanged; only scales that are products are rounded. Other matrices are re-quantised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant.formats import GroupedFormat, PackedTensor, dequantise, find_format
from quant.formats.integer import SUPER_GROUP
from quant.formats.linear import LIN4, LIN8
from quant.quantisers import quantise
from quant.sources.source import Rows

REQUANTISED_GROUP_SIZE = 32
LEAST_LEVEL, MOST_LEVEL = -128, 127
_LINEAR = {fmt.name: fmt for fmt in (LIN4, LIN8)}


@dataclass(frozen=True)
class Scheme:
    """Kind of a grid.

    Attributes:
        bits: bits per code, 4 or 8.
        group_size: columns per scale.
        symmetric: whether all zero points are the middle of the codes.
    """

    bits: int
    group_size: int
    symmetric: bool


@dataclass(frozen=True, eq=False)
class Grid:
    """Rows of a matrix on a grid.

    Attributes:
        codes: (rows, K) u8.
        scales: (rows, K/G) f32.
        zeros: (rows, K/G) u8.
        bits: bits per code.
        group_size: columns per scale, G.
    """

    codes: NDArray[np.uint8]
    scales: Rows
    zeros: NDArray[np.uint8]
    bits: int
    group_size: int

    def on(self, scheme: Scheme) -> Grid:
        """Return the same values on a grid of at least as many bits and of equal or smaller groups.

        Without `scheme.symmetric`, codes and zero points stay as they are. Otherwise all zero points must be the
        middle.
        """
        shift = np.uint8((1 << scheme.bits >> 1) - (1 << self.bits >> 1) if scheme.symmetric else 0)
        times = self.group_size // scheme.group_size
        scales, zeros = np.repeat(self.scales, times, axis=1), np.repeat(self.zeros, times, axis=1)
        return Grid(self.codes + shift, scales, zeros + shift, scheme.bits, scheme.group_size)

    def decode(self, scales: Rows) -> Rows:
        """Return the values (rows, K) with other scales (rows, K/G), such as rounded ones."""
        centred = self.codes.astype(np.int16) - np.repeat(self.zeros, self.group_size, axis=1)
        values: Rows = centred.astype(np.float32) * np.repeat(scales, self.group_size, axis=1)
        return values


def is_grid(packed: PackedTensor) -> bool:
    """Return whether a matrix is a grid as it is, with f16 scales."""
    return packed.format in _LINEAR


def has_levels(name: str) -> bool:
    """Return whether every value of a matrix in format `name` is a scale times a whole number from -128 to 127."""
    fmt = find_format(name)
    if not isinstance(fmt, GroupedFormat) or fmt.allows_zeros or fmt.minimum_sign:
        return False
    return min(fmt.levels) - fmt.zero >= LEAST_LEVEL and max(fmt.levels) - fmt.zero + fmt.shift <= MOST_LEVEL


def scheme_of(packed: PackedTensor, bits: int | None) -> Scheme | None:
    """Return the grid of a matrix, or None if it stays unquantised.

    Args:
        packed: a matrix of the model. Its stored zero points are read.
        bits: bits of matrices that no grid stores unchanged. None: whole numbers are kept, other codes get 8 bits, and
            unquantised matrices stay unquantised.
    """
    if is_grid(packed):
        fmt = _LINEAR[packed.format]
        symmetric = "zeros" not in packed.parts or bool((packed.parts["zeros"] == fmt.zero).all())
        return Scheme(fmt.bits, packed.group_size, symmetric)
    if bits is None and not find_format(packed.format).group_sizes:
        return None
    if bits == LIN4.bits:
        return Scheme(LIN4.bits, REQUANTISED_GROUP_SIZE, symmetric=False)
    return Scheme(LIN8.bits, packed.group_size if has_levels(packed.format) else REQUANTISED_GROUP_SIZE, symmetric=True)


def to_grid(packed: PackedTensor, bits: int | None) -> Grid:
    """Return rows of a matrix on the grid that `scheme_of` chose."""
    if not is_grid(packed) and bits != LIN4.bits and has_levels(packed.format):
        levels, scales = levels_of(packed)
        zeros = np.full(scales.shape, LIN8.zero, np.uint8)
        return Grid((levels + LIN8.zero).astype(np.uint8), scales, zeros, LIN8.bits, packed.group_size)
    if not is_grid(packed):
        target = LIN4 if bits == LIN4.bits else LIN8
        packed, _ = quantise(target.name, dequantise(packed), REQUANTISED_GROUP_SIZE)
    fmt = _LINEAR[packed.format]
    return Grid(
        fmt.codes(packed), fmt.scales(packed).astype(np.float32), fmt.zeros(packed), fmt.bits, packed.group_size
    )


def levels_of(packed: PackedTensor) -> tuple[NDArray[np.int16], Rows]:
    """Return whole numbers (rows, K) and scales (rows, K/G): value = scale * number. See `has_levels`."""
    fmt = find_format(packed.format)
    assert isinstance(fmt, GroupedFormat)
    parts = fmt.plain_parts(packed)
    scales, zeros = parts["scales"], fmt.zeros(packed).astype(np.int16)
    if fmt.shift:
        zeros -= np.int16(fmt.shift) * (scales & 1)
        scales = scales >> 1
    scales = scales.astype(np.float32)
    if fmt.super_scales:
        times = SUPER_GROUP // packed.group_size
        scales = scales * np.repeat(parts["super_scales"].astype(np.float32), times, axis=1)
    if fmt.row_scales:
        scales = parts["row_scales"][:, None] * scales
    levels = np.array(fmt.levels, np.int16)[parts["codes"]]
    return levels - np.repeat(zeros, packed.group_size, axis=1), scales
