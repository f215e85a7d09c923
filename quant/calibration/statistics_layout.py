"""Layout of a statistics file, which is a valid safetensors file.

    u64     bytes of the header, little-endian
    header  JSON, padded with spaces, so that the data begins at a multiple of 64 bytes
    data    f32, little-endian: the blocks of all inputs in module order

Each diagonal block of an input is a tensor `INPUT.NUMBER` of b(b + 1)/2 numbers: the lower triangle of the symmetric
(b, b) matrix of means, row by row. `quant.calibration.moments.block_sizes` gives the sizes b. `__metadata__` has

    format           "qwchat-statistics"
    format_version   "1"
    model            fingerprint of the checkpoint
    samples          number of tokens
    text             where the tokens come from
    text_sha256      SHA-256 (hex) of the token ids
    sha256:INPUT     SHA-256 (hex) of the data of each input

Everything but these values follows from the number of columns of each input. A reader therefore accepts only the header
that a writer would write for the same values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.calibration.moments import Block, block_sizes

FORMAT_NAME = "qwchat-statistics"
FORMAT_VERSION = 1
DIGEST_PREFIX = "sha256:"
NO_DIGEST = "0" * 64
_ALIGNMENT = 64
_ITEM = 4  # bytes of a number


@dataclass(frozen=True)
class StatisticsHeader:
    """What a statistics file is about.

    Attributes:
        model: fingerprint of the checkpoint.
        samples: number of tokens.
        text: where the tokens come from, one line.
        text_sha256: SHA-256 (hex) of the token ids.
        columns: number of columns of each input by name, in module order.
    """

    model: str
    samples: int
    text: str
    text_sha256: str
    columns: Mapping[str, int]


@dataclass(frozen=True)
class InputRange:
    """Position of the data of one input: byte offset behind the header, and the sizes of its blocks."""

    offset: int
    sizes: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return sum(map(triangle_bytes, self.sizes))


def triangle_bytes(size: int) -> int:
    """Return the bytes of the lower triangle of a (size, size) matrix."""
    return size * (size + 1) // 2 * _ITEM


def input_ranges(columns: Mapping[str, int]) -> dict[str, InputRange]:
    """Return the position of each input by name, in order."""
    found, offset = {}, 0
    for name, count in columns.items():
        found[name] = InputRange(offset, block_sizes(count))
        offset += found[name].nbytes
    return found


def data_bytes(columns: Mapping[str, int]) -> int:
    """Return the bytes of all data."""
    return sum(each.nbytes for each in input_ranges(columns).values())


def header_entries(header: StatisticsHeader, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return the JSON object of the header. `digests` are the SHA-256 (hex) of the inputs by name."""
    entries: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT_NAME,
            "format_version": str(FORMAT_VERSION),
            "model": header.model,
            "samples": str(header.samples),
            "text": header.text,
            "text_sha256": header.text_sha256,
            **{DIGEST_PREFIX + name: digests[name] for name in header.columns},
        }
    }
    for name, place in input_ranges(header.columns).items():
        start = place.offset
        for number, size in enumerate(place.sizes):
            stop = start + triangle_bytes(size)
            entries[f"{name}.{number}"] = {
                "dtype": "F32",
                "shape": [size * (size + 1) // 2],
                "data_offsets": [start, stop],
            }
            start = stop
    return entries


def header_bytes(header: StatisticsHeader, digests: Mapping[str, str]) -> bytes:
    """Return the first bytes of a file, up to the data. Their number does not depend on the digests."""
    text = json.dumps(header_entries(header, digests), separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def pack_triangle(block: Block) -> NDArray[np.float32]:
    """Return the lower triangle of a (b, b) matrix row by row, (b(b + 1)/2,) f32."""
    size = len(block)
    packed = np.empty(size * (size + 1) // 2, "<f4")
    start = 0
    for row in range(size):
        packed[start : start + row + 1] = block[row, : row + 1]
        start += row + 1
    return packed


def unpack_triangle(packed: NDArray[np.float32], size: int) -> Block:
    """Return the symmetric (size, size) matrix of a lower triangle."""
    block = np.empty((size, size), np.float32)
    start = 0
    for row in range(size):
        values = packed[start : start + row + 1]
        block[row, : row + 1] = values
        block[: row + 1, row] = values
        start += row + 1
    return block
