"""Metadata of a GGUF file: typed values by key, decoded when they are asked for."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from quant.errors import CheckpointError
from quant.json_fields import short_repr
from quant.sources.gguf.strings import string_positions

Scalar = int | float | bool | str
Value = Scalar | list[int] | list[float] | list[bool] | list[str]

MAX_HEADER_BYTES = 64 << 20  # a vocabulary of 150,000 tokens and its merges needs 6 MB
_MAX_KEYS = 1 << 16
_MAX_KEY_BYTES = (1 << 16) - 1  # limit of the format
_LEAST_PAIR_BYTES = 8 + 1 + 4 + 1
_FLOAT32, _BOOL, _STRING, _ARRAY = 6, 7, 8, 9
_NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8"}
_NUMBERS |= {12: "<f8"}
_DTYPES = {kind: np.dtype(code) for kind, code in _NUMBERS.items()}


def check_length(data: mmap.mmap, where: str) -> None:
    """Raise CheckpointError if the file has shrunk since it was mapped: its lost pages must not be touched."""
    if data.size() < len(data):
        raise CheckpointError(f"{where} shrank while it was read; download it again")


class Cursor:
    """Position in the header of a mapped file. It never moves past the end.

    Args:
        data: mapped file.
        where: name of the file for messages.
        position: first byte to read.
    """

    def __init__(self, data: mmap.mmap, where: str, position: int) -> None:
        self.data = data
        self.where = where
        self.position = position
        self.end = min(len(data), MAX_HEADER_BYTES)

    def skip(self, count: int, what: str) -> int:
        """Move over `count` bytes and return the position before them. Raises CheckpointError at the end."""
        start = self.position
        if count > self.end - start:
            raise self.too_long(what)
        self.position += count
        return start

    def too_long(self, what: str) -> CheckpointError:
        """Return the exception for a header that claims more bytes than the file has."""
        limit = f"; headers are at most {self.end:,} bytes" if self.end < len(self.data) else ""
        return CheckpointError(
            f"{self.where}: {what} at byte {self.position:,} ends after the file, which has {len(self.data):,} bytes"
            f"{limit}; it is truncated or damaged, download it again"
        )

    def u32(self, what: str) -> int:
        """Read an unsigned number of 4 bytes."""
        return int(struct.unpack_from("<I", self.data, self.skip(4, what))[0])

    def u64(self, what: str) -> int:
        """Read an unsigned number of 8 bytes."""
        return int(struct.unpack_from("<Q", self.data, self.skip(8, what))[0])

    def name(self, what: str, most: int) -> str:
        """Read a string of 1 to `most` bytes that is printable UTF-8 text."""
        length = self.u64(what)
        if not 1 <= length <= most:
            raise CheckpointError(
                f"{self.where}: {what} has {length:,} bytes, expected 1 to {most:,}; download the file again"
            )
        start = self.skip(length, what)
        raw = self.data[start : start + length]
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = "\0"
        if not text.isprintable():
            raise CheckpointError(
                f"{self.where}: {what} {short_repr(raw)} is not printable UTF-8 text; download the file again"
            )
        return text


@dataclass(frozen=True)
class _Stored:
    """Position of a value: type of the value or of its items, byte range, number of items (None: not an array)."""

    kind: int
    start: int
    stop: int
    count: int | None


class Metadata(Mapping[str, Value]):
    """Values by key. Each access decodes the value again, so that large arrays take memory only while they are used.

    f32 values are the shortest decimals that round to them: 1e-06, not 9.999999974752427e-07. Access raises
    CheckpointError for a string that is not UTF-8, or if the file has shrunk.
    """

    def __init__(self, data: mmap.mmap, where: str, stored: dict[str, _Stored]) -> None:
        self._data = data
        self._where = where
        self._stored = stored

    def __getitem__(self, key: str) -> Value:
        """Return the value of `key`. Raises KeyError if it is missing."""
        stored = self._stored[key]
        check_length(self._data, self._where)
        if stored.kind == _STRING:
            return self._strings(key, stored)
        values = self._numbers(key, stored)
        return values[0] if stored.count is None else values

    def __iter__(self) -> Iterator[str]:
        """Return the keys in file order."""
        return iter(self._stored)

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._stored)

    def count(self, key: str) -> int | None:
        """Return the number of items of an array without decoding it. None: `key` is missing or not an array."""
        stored = self._stored.get(key)
        return stored.count if stored else None

    def _numbers(self, key: str, stored: _Stored) -> list[int] | list[float] | list[bool]:
        dtype = _DTYPES[stored.kind]
        values = np.frombuffer(self._data, dtype, (stored.stop - stored.start) // dtype.itemsize, stored.start)
        if stored.kind == _BOOL:
            if (values > 1).any():
                raise CheckpointError(f"{self._where}: {short_repr(key)} is not true or false; download the file again")
            return [bool(value) for value in values]
        if stored.kind == _FLOAT32:
            return [float(str(value)) for value in values]
        return list(values.tolist())

    def _strings(self, key: str, stored: _Stored) -> str | list[str]:
        raw = self._data[stored.start : stored.stop]
        try:
            if stored.count is None:
                return raw.decode()
            texts: list[str] = []
            if stored.count:
                pieces = string_positions(self._data, stored.start, stored.count, stored.stop)
                heads = [position - stored.start for piece in pieces for position in piece.tolist()]
                for head, after in zip(heads, [*heads[1:], len(raw)], strict=True):
                    texts.append(raw[head + 8 : after].decode())
            return texts
        except UnicodeDecodeError as exc:
            item = "" if stored.count is None else f"item {len(texts):,} of "
            raise CheckpointError(
                f"{self._where}: {item}{short_repr(key)} is not UTF-8 text ({exc.reason}); download the file again"
            ) from exc


def read_metadata(cursor: Cursor, count: int) -> Metadata:
    """Read `count` pairs of key and value at `cursor`. Only positions are stored.

    Raises:
        CheckpointError: the file has fewer bytes than `count` pairs or than a value needs, a key repeats or is not
            text, or a value has an unknown type.
    """
    if count > min(_MAX_KEYS, (cursor.end - cursor.position) // _LEAST_PAIR_BYTES):
        raise CheckpointError(
            f"{cursor.where}: the header claims {count:,} metadata keys, more than the file can hold; "
            "it is truncated or damaged, download it again"
        )
    stored: dict[str, _Stored] = {}
    for _ in range(count):
        key = cursor.name("a metadata key", _MAX_KEY_BYTES)
        if key in stored:
            raise CheckpointError(f"{cursor.where} has the metadata key {short_repr(key)} twice; download it again")
        stored[key] = _read_position(cursor, short_repr(key))
    return Metadata(cursor.data, cursor.where, stored)


def _read_position(cursor: Cursor, what: str) -> _Stored:
    """Move over one value of the metadata and return its position."""
    kind, count = cursor.u32(what), None
    if kind == _ARRAY:
        kind, count = cursor.u32(what), cursor.u64(what)
        if kind == _ARRAY:
            raise CheckpointError(f"{cursor.where}: {what} is an array of arrays, which is not supported")
    if kind == _STRING and count is None:
        length = cursor.u64(what)
        start = cursor.skip(length, what)
    elif kind == _STRING:
        start = cursor.position
        _skip_strings(cursor, count or 0, what)
    elif kind in _DTYPES:
        start = cursor.skip(_DTYPES[kind].itemsize * (1 if count is None else count), what)
    else:
        raise CheckpointError(f"{cursor.where}: {what} has the unknown type {kind}; download the file again")
    return _Stored(kind, start, cursor.position, count)


def _skip_strings(cursor: Cursor, count: int, what: str) -> None:
    if count > (cursor.end - cursor.position) // 8:
        raise cursor.too_long(what)
    try:
        for piece in string_positions(cursor.data, cursor.position, count, cursor.end):
            last = int(piece[-1])
            cursor.position = last + 8 + int.from_bytes(cursor.data[last : last + 8], "little")
    except ValueError:
        raise cursor.too_long(what) from None
