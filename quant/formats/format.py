"""Common parts of all packed formats: tile geometry, format records, and packed tensors.

A weight matrix is (N, K) = (out, in). Its rows are padded with zero rows to a multiple of 16 and divided into tiles of
16 rows. `tiles = ceil(N / 16)` is the first axis of every part of every matrix format, so that a range of tiles is one
contiguous byte range of each part. K is a multiple of 32 and of the group size. All numbers are little-endian, on disk
and in memory.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quant.errors import FormatError

if sys.byteorder != "little":
    raise ImportError("packed formats are little-endian; big-endian machines are not supported")

TILE_ROWS = 16
COLUMN_MULTIPLE = 32

Layout = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""Part name -> (dtype, shape), in file order."""


@dataclass(frozen=True, eq=False)
class PackedTensor:
    """Tensor in the memory layout that the kernels use.

    Attributes:
        format: name of the format.
        shape: plain shape without padding rows, (N, K) or (n,).
        group_size: weights of a row that share a scale; 0 for formats without groups.
        parts: arrays as in the layout of the format. `quant.formats.check_packed` checks them.
    """

    format: str
    shape: tuple[int, ...]
    group_size: int
    parts: dict[str, NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Bytes of all parts, including padding rows."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def num_tiles(self) -> int:
        """Number of 16-row tiles of a matrix."""
        return tile_count(self.shape[0])


@dataclass(frozen=True)
class Format(ABC):
    """Record of one packed format, from which quantisers, policy, container and kernels derive their behaviour.

    A format is either its own subclass, or an instance of a class in `quant.formats.integer` or `quant.formats.dense`.
    `quant.formats.FORMATS` lists all records.

    Attributes:
        name: name of the format in the manifest.
        quantiser: dotted name of the module that packs float32 values; see `quant.quantisers`. None for a format that
            only stores what a source has quantised.
        bits: bits per code, without scales and zero points.
        group_sizes: allowed numbers of weights per scale, the default first; empty for formats without scales.
        stores_zeros: whether the quantiser stores zero points.
        kernel: how the engine multiplies with such a matrix: by integer dot products, or by reading the values as
            bfloat16 or float32. None if it has no kernel for the format.
        gpu: whether the engine can use it on a GPU as well.
        widened: format with the same values that a GPU stores instead, since it has no kernels for this one; see
            `quant.formats.widening`.
        container_version: first version of model folders that may contain the format; see `quant.container`.
    """

    name: str
    bits: int
    quantiser: str | None = None
    group_sizes: tuple[int, ...] = ()
    stores_zeros: bool = False
    kernel: Literal["integer", "bf16", "f32"] | None = None
    gpu: bool = True
    widened: Format | None = None
    container_version: int = 1

    @abstractmethod
    def layout(self, shape: tuple[int, ...], group_size: int = 0, zeros: bool = False) -> Layout:
        """Return the parts of a tensor of plain `shape`. Raises FormatError if the arguments do not fit the format."""

    @abstractmethod
    def dequantise(self, packed: PackedTensor) -> NDArray[np.float32]:
        """Return the float32 values of `packed`, (N, K) or (n,). The caller has checked its parts."""


def tile_count(rows: int) -> int:
    """Return ceil(rows / 16)."""
    return -(-rows // TILE_ROWS)


def matrix_shape(name: str, shape: tuple[int, ...], group_size: int, allowed: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (tiles, K, N) of an (N, K) matrix. Raises FormatError if shape or group size do not fit format `name`."""
    if len(shape) != 2 or min(shape) < 1:
        raise FormatError(f"format {name} stores matrices, not tensors of shape {shape}")
    if group_size not in allowed:
        raise FormatError(f"format {name} supports the group sizes {allowed}, not {group_size}")
    rows, columns = shape
    multiple = max(group_size, COLUMN_MULTIPLE)
    if columns % multiple:
        raise FormatError(f"format {name} needs a multiple of {multiple} columns, but the shape {shape} has {columns}")
    return tile_count(rows), columns, rows


def check_parts(packed: PackedTensor, expected: Layout) -> None:
    """Raise FormatError unless the parts are exactly those of `expected`."""
    missing = [name for name in expected if name not in packed.parts]
    extra = [name for name in packed.parts if name not in expected]
    if missing or extra:
        raise FormatError(f"format {packed.format}: parts missing {missing}, unknown {extra}")
    for name, part in packed.parts.items():
        dtype, shape = expected[name]
        if part.dtype != dtype or part.shape != shape:
            raise FormatError(
                f"format {packed.format}: part {name} is {part.dtype}{list(part.shape)}, expected {dtype}{list(shape)}"
            )


def pad_rows(plain: NDArray[Any], fill: int = 0) -> NDArray[Any]:
    """Append rows of `fill` up to a multiple of 16 rows. Return `plain` itself if no row is missing."""
    missing = -plain.shape[0] % TILE_ROWS
    if not missing:
        return plain
    padding = np.full((missing, *plain.shape[1:]), fill, dtype=plain.dtype)
    return np.concatenate([plain, padding])


def to_tiles(plain: NDArray[Any]) -> NDArray[Any]:
    """Reorder (N, X) to (tiles, X, 16), rows innermost. N must be a multiple of 16."""
    rows, columns = plain.shape
    return np.ascontiguousarray(plain.reshape(rows // TILE_ROWS, TILE_ROWS, columns).transpose(0, 2, 1))


def from_tiles(tiled: NDArray[Any]) -> NDArray[Any]:
    """Reorder (tiles, X, 16) to (16 tiles, X): the inverse of `to_tiles`."""
    tiles, columns, rows = tiled.shape
    return np.ascontiguousarray(tiled.transpose(0, 2, 1)).reshape(tiles * rows, columns)


def to_quads(plain: NDArray[Any]) -> NDArray[Any]:
    """Reorder (N, K) to (tiles, K/4, 16, 4): four consecutive columns of a row are adjacent."""
    rows, columns = plain.shape
    split = plain.reshape(rows // TILE_ROWS, TILE_ROWS, columns // 4, 4)
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3))


def from_quads(quads: NDArray[Any]) -> NDArray[Any]:
    """Reorder (tiles, K/4, 16, 4) to (16 tiles, K): the inverse of `to_quads`."""
    tiles, blocks, rows, four = quads.shape
    return np.ascontiguousarray(quads.transpose(0, 2, 1, 3)).reshape(tiles * rows, blocks * four)


def _quads_to_nibbles(quads: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack (tiles, K/4, 16, 4) codes 0..15 into (tiles, K/8, 16, 4): odd quads become the high nibbles."""
    return np.ascontiguousarray(quads[:, 0::2] | (quads[:, 1::2] << np.uint8(4)))


def unpack_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Unpack (tiles, K/8, 16, 4) to (16 tiles, K) codes: the low nibbles are columns 8b+j, the high ones 8b+4+j."""
    tiles, blocks, rows, four = packed.shape
    quads = np.empty((tiles, 2 * blocks, rows, four), dtype=np.uint8)
    quads[:, 0::2] = packed & np.uint8(15)
    quads[:, 1::2] = packed >> np.uint8(4)
    return from_quads(quads)


def pack_codes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack (N, K) codes in 4, 6 or 8 bits each, (tiles, K * bits / 32, 16, 4). N must be a multiple of 16."""
    return pack_quads(to_quads(codes), bits)


def pack_quads(quads: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack (tiles, K/4, 16, 4) codes in 4, 6 or 8 bits each, (tiles, K * bits / 32, 16, 4)."""
    if bits == 6:
        return _quads_to_sixes(quads)
    return _quads_to_nibbles(quads) if bits == 4 else quads


def unpack_codes(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Unpack codes to (16 tiles, K): the inverse of `pack_codes`."""
    if bits == 6:
        return from_quads(unpack_sixes(packed))
    return unpack_nibbles(packed) if bits == 4 else from_quads(packed)


def _quads_to_sixes(quads: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack codes 0..63: the bits of every fourth quad become the upper bits of the three quads before it."""
    tiles, count, rows, four = quads.shape
    fours = quads.reshape(tiles, count // 4, 4, rows, four)
    upper = (fours[:, :, 3:] >> np.array([0, 2, 4], np.uint8).reshape(3, 1, 1)) & np.uint8(3)
    return (fours[:, :, :3] | (upper << np.uint8(6))).reshape(tiles, 3 * count // 4, rows, four)


def unpack_sixes(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Unpack (tiles, 3K/16, 16, 4) to quads (tiles, K/4, 16, 4)."""
    tiles, count, rows, four = packed.shape
    threes = packed.reshape(tiles, count // 3, 3, rows, four)
    upper = threes >> np.uint8(6)
    last = upper[:, :, 0] | (upper[:, :, 1] << np.uint8(2)) | (upper[:, :, 2] << np.uint8(4))
    quads = np.concatenate([threes & np.uint8(63), last[:, :, None]], axis=2)
    return quads.reshape(tiles, 4 * count // 3, rows, four)


def require(condition: bool, message: str) -> None:
    """Raise FormatError with `message` unless `condition` holds."""
    if not condition:
        raise FormatError(message)
