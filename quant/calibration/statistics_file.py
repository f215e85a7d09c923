"""Read a statistics file, which is untrusted: its header is checked against its size before anything is allocated."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from quant.calibration.moments import Block, InputMoments, input_columns, input_of
from quant.calibration.statistics_layout import (
    DIGEST_PREFIX,
    FORMAT_NAME,
    FORMAT_VERSION,
    InputRange,
    StatisticsHeader,
    data_bytes,
    header_entries,
    input_ranges,
    triangle_bytes,
    unpack_triangle,
)
from quant.errors import StatisticsError
from quant.formats import PackedTensor
from quant.json_fields import JsonFields, short_repr
from quant.model_config import ModelConfig
from quant.safe_files import MAX_HEADER_BYTES, open_regular_file, parse_json_object

_REMEDY = "; calibrate the model again"
_MAX_SAMPLES = 1 << 40
_MAX_COLUMNS = 1 << 24


class StatisticsFile:
    """An opened statistics file. It implements `Calibration`; threads may share it.

    Args:
        path: the file.
        config: the model that will be converted.
        model: fingerprint of its checkpoint.

    Attributes:
        path: the file.
        header: what the file is about.
        fingerprint: SHA-256 (hex) of the header, which holds a digest of the data of every input.

    Raises:
        StatisticsError: the file is missing, damaged, or belongs to another model.
    """

    ordered = False

    def __init__(self, path: Path, config: ModelConfig, model: str) -> None:
        self.path = path
        self._config = config
        self._file = open_regular_file(path, StatisticsError)
        try:
            self.header, self._digests, self._base, self.fingerprint = _read_header(self._file, path)
            _check_model(self.header, path, config, model)
        except BaseException:
            self._file.close()
            raise
        self._ranges = input_ranges(self.header.columns)
        self._lock = threading.Lock()
        self._last: tuple[str, InputMoments] | None = None  # Matrices with the same input follow each other.

    def __enter__(self) -> StatisticsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def moments(self, tensor: str) -> InputMoments | None:
        """Return the moments of the input of matrix `tensor`; see `Calibration.moments`."""
        name = input_of(tensor, self._config)
        if name is None:
            return None
        with self._lock:
            if self._last is None or self._last[0] != name:
                self._last = None  # Frees the memory before the next blocks are read.
                self._last = name, InputMoments(self.blocks(name), self.header.samples)
            return self._last[1]

    def finished(self, tensor: str, packed: PackedTensor) -> None:
        """Do nothing: the moments are those of the float model."""

    def blocks(self, name: str) -> list[Block]:
        """Return the blocks of input `name`, (b, b) f32 each. Raises StatisticsError if its data is damaged."""
        place = self._ranges[name]
        hasher = hashlib.sha256()
        blocks = [self._block(hasher, start, size) for start, size in _block_offsets(place, self._base)]
        if hasher.hexdigest() != self._digests[name]:
            raise self._damaged(name, "does not match its checksum")
        for block in blocks:
            if not np.isfinite(block).all() or block.diagonal().min() < 0:
                raise self._damaged(name, "is not a matrix of second moments")
        return blocks

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _block(self, hasher: Any, start: int, size: int) -> Block:
        try:
            data = os.pread(self._file.fileno(), triangle_bytes(size), start)
        except OSError as exc:
            raise StatisticsError(f"{self.path} cannot be read: {exc.strerror}") from exc
        if len(data) != triangle_bytes(size):
            raise StatisticsError(f"{self.path} is truncated{_REMEDY}")
        hasher.update(data)
        return unpack_triangle(np.frombuffer(data, "<f4"), size)

    def _damaged(self, name: str, problem: str) -> StatisticsError:
        return StatisticsError(f"{self.path} is damaged: the data of {name} {problem}{_REMEDY}")


def open_statistics(path: str | Path, config: ModelConfig, model: str) -> StatisticsFile:
    """Open a statistics file for the model with `config` and the checkpoint fingerprint `model`.

    Raises:
        StatisticsError: the file is missing, damaged, or belongs to another model.
    """
    return StatisticsFile(Path(path), config, model)


def read_statistics_header(path: Path) -> tuple[StatisticsHeader, dict[str, str]]:
    """Return the header of a statistics file, and the SHA-256 (hex) of each input. Raises StatisticsError."""
    with open_regular_file(path, StatisticsError) as file:
        header, digests, _, _ = _read_header(file, path)
    return header, digests


def _block_offsets(place: InputRange, base: int) -> list[tuple[int, int]]:
    found, start = [], base + place.offset
    for size in place.sizes:
        found.append((start, size))
        start += triangle_bytes(size)
    return found


def _read_header(file: BinaryIO, path: Path) -> tuple[StatisticsHeader, dict[str, str], int, str]:
    """Return the header, the digests of the inputs, the offset of the data, and the digest of the header."""
    try:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise StatisticsError(f"{path} is not a statistics file, or truncated{_REMEDY}")
        data = file.read(length)
    except OSError as exc:
        raise StatisticsError(f"{path} cannot be read: {exc.strerror}") from exc
    entries = parse_json_object(data, f"the header of {path}", StatisticsError)
    fields = JsonFields(entries, str(path), StatisticsError, _REMEDY)
    metadata = fields.inner("__metadata__", "metadata")
    _check_version(metadata)
    columns = _columns(fields)
    digests = {name: metadata.required_text(DIGEST_PREFIX + name) for name in columns}
    header = StatisticsHeader(
        metadata.required_text("model"),
        _samples(metadata),
        metadata.required_text("text"),
        metadata.required_text("text_sha256"),
        columns,
    )
    if entries != header_entries(header, digests):
        raise fields.invalid("the header contradicts itself")
    if size != 8 + length + data_bytes(columns):
        raise fields.invalid(f"the file has {size:,} bytes, but its header needs {8 + length + data_bytes(columns):,}")
    return header, digests, 8 + length, hashlib.sha256(data).hexdigest()


def _check_version(metadata: JsonFields) -> None:
    if metadata.required_text("format") != FORMAT_NAME:
        raise metadata.invalid(f"format is {short_repr(metadata.values['format'])}, expected {FORMAT_NAME!r}")
    version = metadata.required_text("format_version")
    if version != str(FORMAT_VERSION):
        raise metadata.invalid(f"format_version is {short_repr(version)}, but this program reads {FORMAT_VERSION}")


def _samples(metadata: JsonFields) -> int:
    text = metadata.required_text("samples")
    if not (text.isascii() and text.isdecimal() and len(text) < 14 and 0 < int(text) <= _MAX_SAMPLES):
        raise metadata.invalid(f"samples is {short_repr(text)}, expected a number")
    return int(text)


def _columns(fields: JsonFields) -> dict[str, int]:
    """Return the columns of each input, from the shapes of its blocks."""
    columns: dict[str, int] = {}
    for key in fields.values:
        if key == "__metadata__":
            continue
        (count,) = fields.inner(key).sizes("shape", 1, _MAX_COLUMNS * _MAX_COLUMNS)
        name = key.rpartition(".")[0]
        columns[name] = columns.get(name, 0) + (isqrt(8 * count + 1) - 1) // 2
        if columns[name] > _MAX_COLUMNS:
            raise fields.invalid(f"the input {short_repr(name)} has more than {_MAX_COLUMNS:,} columns")
    if not columns:
        raise fields.invalid("the header lists no input")
    return columns


def _check_model(header: StatisticsHeader, path: Path, config: ModelConfig, model: str) -> None:
    if header.model != model:
        raise StatisticsError(f"{path} belongs to another model{_REMEDY}")
    expected: Mapping[str, int] = input_columns(config)
    if header.columns != expected:
        raise StatisticsError(f"{path} has other inputs than the model{_REMEDY}")
