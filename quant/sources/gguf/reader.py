"""GGUF files, versions 2 and 3: metadata, and position, type and shape of each tensor.

A file is "GGUF", u32 version, u64 number of tensors, u64 number of metadata keys, the metadata, the tensor infos, and
the data at the next multiple of the alignment (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). It is parsed
here because every number of a downloaded file must be checked before it is used as an address or a size.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.errors import CheckpointError
from quant.safe_files import open_regular_file
from quant.sources.fingerprint import sample_digest
from quant.sources.gguf.block_types import BLOCK_TYPES, OTHER_TYPES, BlockType
from quant.sources.gguf.metadata import Cursor, Metadata, check_length, read_metadata
from quant.sources.source import short_name

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"
_MAX_ALIGNMENT = 1 << 20
_PREFIX_BYTES = 4 + 4 + 8 + 8
_MAX_TENSORS = 1 << 16
_MAX_NAME_BYTES = 63  # limit of llama.cpp
_MAX_DIMENSIONS = 4
_MAX_WEIGHTS = 1 << 45
_LEAST_INFO_BYTES = 8 + 1 + 4 + 8 + 4 + 8


@dataclass(frozen=True)
class GgufTensor:
    """Position of one tensor.

    Attributes:
        type: storage type.
        shape: sizes, slowest dimension first: (N, K) = (out, in), or (n,).
        start: first byte in the file.
        nbytes: bytes in the file.
    """

    type: BlockType
    shape: tuple[int, ...]
    start: int
    nbytes: int


class GgufFile:
    """Opened file. The header is checked; metadata and weights are read from the mapped file when they are used."""

    def __init__(
        self, path: Path, data: mmap.mmap, metadata: Metadata, tensors: dict[str, GgufTensor], fingerprint: str
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.tensors: Mapping[str, GgufTensor] = tensors
        self.fingerprint = fingerprint
        self._data = data

    @classmethod
    def open(cls, path: str | Path) -> GgufFile:
        """Map a file and check its header.

        Raises:
            CheckpointError: the file is missing, not a GGUF file of version 2 or 3, or damaged: a count exceeds
                the file, a name repeats or is not text, a tensor has an unknown type, or tensors overlap or exceed the
                file.
        """
        path = Path(path)
        with open_regular_file(path, CheckpointError) as stream:
            try:
                data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as exc:  # ValueError: the file is empty
                raise CheckpointError(f"{path} cannot be memory-mapped: {exc}") from exc
            try:
                metadata, tensors, data_start = _read_header(data, str(path))
                header = hashlib.sha256(memoryview(data)[:data_start])
                sample = sample_digest(stream, len(data))
            except OSError as exc:
                raise CheckpointError(f"{path} cannot be read: {exc.strerror}") from exc
        fingerprint = hashlib.sha256(header.digest() + sample).hexdigest()
        return cls(path, data, metadata, tensors, fingerprint)

    def blocks(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the bytes of rows `start` to `stop`, exclusive, as (rows, blocks, bytes per block) u8.

        The result is a view of the mapped file, which the caller must not keep. A vector is one row. Raises
        CheckpointError if the file has shrunk.
        """
        check_length(self._data, str(self.path))
        tensor = self.tensors[name]
        row_blocks = tensor.shape[-1] // tensor.type.weights
        row_bytes = row_blocks * tensor.type.block_bytes
        flat = np.frombuffer(self._data, np.uint8, (stop - start) * row_bytes, tensor.start + start * row_bytes)
        return flat.reshape(stop - start, row_blocks, tensor.type.block_bytes)

    def release(self, name: str, start: int, stop: int) -> None:
        """Let the system drop the pages of rows `start` to `stop`, exclusive. They will not be read again."""
        tensor = self.tensors[name]
        row_bytes = tensor.nbytes // tensor.shape[0]
        first = -(-(tensor.start + start * row_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (tensor.start + stop * row_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self._data.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        """Unmap the file."""
        with suppress(BufferError):  # a view is still in use; the file is unmapped when it is deleted
            self._data.close()


def _read_header(data: mmap.mmap, where: str) -> tuple[Metadata, dict[str, GgufTensor], int]:
    """Return the metadata, the tensors by name, and the start of the data."""
    _check_version(data, where)
    cursor = Cursor(data, where, 8)
    tensor_count, key_count = cursor.u64("the number of tensors"), cursor.u64("the number of metadata keys")
    metadata = read_metadata(cursor, key_count)
    alignment = _alignment(metadata, where)
    if tensor_count > min(_MAX_TENSORS, (cursor.end - cursor.position) // _LEAST_INFO_BYTES):
        raise CheckpointError(
            f"{where}: the header claims {tensor_count:,} tensors, more than the file can hold; "
            "it is truncated or damaged, download it again"
        )
    found: dict[str, tuple[BlockType, tuple[int, ...], int]] = {}
    for _ in range(tensor_count):
        name = cursor.name("a tensor name", _MAX_NAME_BYTES)
        if name in found:
            raise CheckpointError(f"{where} has tensor {short_name(name)} twice; download it again")
        found[name] = _read_info(cursor, f"tensor {short_name(name)!r}", alignment)
    data_start = -(-cursor.position // alignment) * alignment
    tensors = {
        name: GgufTensor(kind, shape, data_start + offset, math.prod(shape) // kind.weights * kind.block_bytes)
        for name, (kind, shape, offset) in found.items()
    }
    _check_ranges(tensors, len(data), where)
    return metadata, tensors, min(data_start, len(data))


def _check_version(data: mmap.mmap, where: str) -> None:
    if data[:4] != MAGIC:
        raise CheckpointError(f"{where} is not a GGUF file: it begins with {data[:4]!r}, not {MAGIC!r}")
    if len(data) < _PREFIX_BYTES:
        raise CheckpointError(f"{where} has {len(data)} bytes, too few for a GGUF file; download it again")
    version = int.from_bytes(data[4:8], "little")
    if version not in VERSIONS and int.from_bytes(data[4:8], "big") in VERSIONS:
        raise CheckpointError(f"{where} is a big-endian GGUF file, which is not supported; get the little-endian file")
    if version not in VERSIONS:
        raise CheckpointError(f"{where} is a GGUF file of version {version}; versions 2 and 3 are supported")


def _alignment(metadata: Metadata, where: str) -> int:
    if ALIGNMENT_KEY not in metadata:
        return DEFAULT_ALIGNMENT
    alignment = metadata[ALIGNMENT_KEY]
    if type(alignment) is not int or not 1 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise CheckpointError(
            f"{where}: {ALIGNMENT_KEY} is not a power of two up to {_MAX_ALIGNMENT:,}; download the file again"
        )
    return alignment


def _read_info(cursor: Cursor, what: str, alignment: int) -> tuple[BlockType, tuple[int, ...], int]:
    """Read one tensor info behind the name: type, shape with the slowest dimension first, offset in the data."""
    dimensions = cursor.u32(what)
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise CheckpointError(
            f"{cursor.where}: {what} has {dimensions:,} dimensions, expected 1 to {_MAX_DIMENSIONS}; "
            "download the file again"
        )
    shape = tuple(cursor.u64(what) for _ in range(dimensions))[::-1]
    number, offset = cursor.u32(what), cursor.u64(what)
    kind = BLOCK_TYPES.get(number)
    if kind is None:
        *others, last = (supported.name for supported in BLOCK_TYPES.values())
        raise CheckpointError(
            f"{cursor.where}: {what} has the type {OTHER_TYPES.get(number, 'number')} ({number}); "
            f"supported are {', '.join(others)} and {last}"
        )
    if min(shape) < 1 or math.prod(shape) > _MAX_WEIGHTS:
        sizes = " x ".join(f"{size:,}" for size in shape)
        raise CheckpointError(f"{cursor.where}: {what} has the shape {sizes}; download the file again")
    if shape[-1] % kind.weights:
        raise CheckpointError(
            f"{cursor.where}: {what} has rows of {shape[-1]:,} weights, not a multiple of the {kind.weights} weights "
            f"of a {kind.name} block; download the file again"
        )
    if offset % alignment:
        raise CheckpointError(
            f"{cursor.where}: {what} begins at offset {offset:,}, not a multiple of the alignment {alignment}; "
            "download the file again"
        )
    return kind, shape, offset


def _check_ranges(tensors: Mapping[str, GgufTensor], size: int, where: str) -> None:
    """Check that the tensors lie within the file and do not overlap."""
    position, previous = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.start + tensor.nbytes > size:
            raise CheckpointError(
                f"{where}: tensor {short_name(name)!r} ends at byte {tensor.start + tensor.nbytes:,}, but the file has "
                f"{size:,}; it is truncated, download it again"
            )
        if tensor.start < position:
            raise CheckpointError(
                f"{where}: tensors {short_name(previous)!r} and {short_name(name)!r} overlap; download the file again"
            )
        position, previous = tensor.start + tensor.nbytes, name
