"""A KV cache on disk: what a conversation has read, so that continuing it evaluates nothing again.

One file, little-endian:

    magic 8 bytes, version u32, kind of cache 8 bytes, fingerprint 16 bytes, layout 32 bytes, layers u32, positions u32,
    a CRC-32 for each layer (layers) u32, token ids (positions) u32, CRC-32 of all of this u32, zeros up to 64 bytes;
    then layer by layer the pieces of `Cache.segments`, without gaps.

Each piece is as long in a cache of any capacity, so a file fits every cache that has enough positions. `fingerprint` is
the model's; `layout` is the cache's `layout_id`. A file that is anything else than what was written is refused, and the
tokens are evaluated again: it holds nothing that cannot be computed from them. That is why writing does not wait for
the disk either.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from quant.safe_files import NotPrivateError, atomic_write, open_private
from quant.wording import Argument, ArgumentMessage
from qwchat.errors import SnapshotError
from qwchat.model.decoder import Cache

_MAGIC, _VERSION = b"qwchatKV", 2
_HEAD = struct.Struct("<8sI8s16s32sII")
_CHECKSUM = struct.Struct("<I")


def _head_fields(cache: Cache, fingerprint: str, positions: int) -> bytes:
    return _HEAD.pack(
        *(_MAGIC, _VERSION, cache.kind.encode(), fingerprint.encode(), cache.layout_id),
        *(len(cache.layers), positions),
    )


def _head_bytes(layers: int, positions: int) -> int:
    """Return the size of the head with its tables and their checksum."""
    return _HEAD.size + 4 * layers + 4 * positions + _CHECKSUM.size


def _data_offset(layers: int, positions: int) -> int:
    """Return the offset of the first row."""
    return -(-_head_bytes(layers, positions) // 64) * 64


def file_bytes(cache: Cache, positions: int) -> int:
    """Return the size of the file that :func:`save` writes."""
    rows = sum(row.nbytes for layer in cache.layers for row in cache.segments(layer, positions))
    return _data_offset(len(cache.layers), positions) + rows


def save(path: Path, cache: Cache, ids: NDArray[np.int64], fingerprint: str) -> int:
    """Write the positions of `ids` (positions,) i64 to `path`, readable for the user alone; return the size in bytes.

    The file appears under its name when it is whole. Raises SnapshotError where it cannot be written.
    """
    try:
        with atomic_write(path, durable=False, temporary_path=path.with_name(f"{path.name}.part")) as file:
            _write(file, cache, ids, fingerprint)
    except OSError as error:
        raise SnapshotError(f"the snapshot {path} cannot be written: {error.strerror or error}") from error
    return file_bytes(cache, len(ids))


def _write(file: BinaryIO, cache: Cache, ids: NDArray[np.int64], fingerprint: str) -> None:
    start = _data_offset(len(cache.layers), len(ids))
    checksums = np.zeros(len(cache.layers), "<u4")
    file.seek(start)
    for number, layer in enumerate(cache.layers):
        checksum = 0
        for row in cache.segments(layer, len(ids)):
            file.write(row.data)
            checksum = zlib.crc32(row.data, checksum)
        checksums[number] = checksum
    # The head comes last: without it the file is not a snapshot.
    head = _head_fields(cache, fingerprint, len(ids)) + checksums.tobytes() + ids.astype("<u4").tobytes()
    file.seek(0)
    file.write((head + _CHECKSUM.pack(zlib.crc32(head))).ljust(start, b"\0"))


def restore(path: Path, cache: Cache, context: int, fingerprint: str, threads: int = 1) -> NDArray[np.int64]:
    """Read `path` into the cache; return the token ids (positions,) i64 whose keys and values it now holds.

    `context`: the most positions to accept; `threads`: how many read. Raises FileNotFoundError, and SnapshotError for a
    file that does not fit or is not as it was written: nothing in the cache is to be used then.
    """
    try:
        with _open(path) as file:
            ids, checksums = _read_head(file, path, cache, context, fingerprint)
            start = _data_offset(len(checksums), len(ids))
            if not _read_rows(file, cache, checksums, start, len(ids), max(1, min(threads, len(checksums)))):
                cache.clear()
                raise SnapshotError(f"{path} is damaged")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SnapshotError(f"{path} cannot be read: {error.strerror or error}") from error
    return ids


def _open(path: Path) -> BinaryIO:
    try:  # Its checksums find accidents, not intentions.
        return open_private(path, buffering=0)
    except NotPrivateError as error:
        raise SnapshotError(f"{path} is not a file that only you can write") from error


def _read_head(
    file: BinaryIO, path: Path, cache: Cache, context: int, fingerprint: str
) -> tuple[NDArray[np.int64], list[int]]:
    """Return token ids, and a checksum for each layer, of a file of the right size."""
    start = file.read(_HEAD.size)
    if len(start) < _HEAD.size or start[: len(_MAGIC)] != _MAGIC:
        raise SnapshotError(f"{path} is damaged")
    _, version, kind, its_model, *_, positions = _HEAD.unpack(start)
    if version != _VERSION:
        raise SnapshotError(f"{path} was written by another version of qwchat")
    if its_model != fingerprint.encode():
        raise SnapshotError(f"{path} belongs to another model")
    if kind.rstrip(b"\0") != cache.kind.encode():
        raise SnapshotError(ArgumentMessage(f"{path} has another ", Argument("kv"), f" than {cache.kind}"))
    if start != _head_fields(cache, fingerprint, positions):
        raise SnapshotError(f"{path} was written by another version of qwchat")
    if positions > context:
        raise SnapshotError(f"{path} holds {positions:,} tokens, and the context {context:,}")
    layers = len(cache.layers)
    tables = file.read(_head_bytes(layers, positions) - _HEAD.size)
    whole = os.fstat(file.fileno()).st_size == file_bytes(cache, positions)
    if not whole or zlib.crc32(start + tables[:-4]).to_bytes(4, "little") != tables[-4:]:
        raise SnapshotError(f"{path} is damaged")
    ids = np.frombuffer(tables, "<u4", positions, 4 * layers).astype(np.int64)
    if positions and int(ids.max()) >= cache.config.vocab_size:
        raise SnapshotError(f"{path} is damaged")
    return ids, np.frombuffer(tables, "<u4", layers).tolist()


def _read_rows(file: BinaryIO, cache: Cache, checksums: list[int], start: int, positions: int, threads: int) -> bool:
    """Return whether every layer came as it was written. `start`: where the first begins."""
    offsets = [start]
    for layer in cache.layers:
        offsets.append(offsets[-1] + sum(row.nbytes for row in cache.segments(layer, positions)))
    intact = [False] * len(cache.layers)

    def read(first: int) -> None:
        for number in range(first, len(cache.layers), threads):
            rows = cache.segments(cache.layers[number], positions)
            intact[number] = _read_layer(file.fileno(), rows, offsets[number], checksums[number])

    # Half of the time goes into page faults of the cache's fresh memory and into checksums: worth sharing out.
    helpers = [threading.Thread(target=read, args=(number,), name="snapshot") for number in range(1, threads)]
    for helper in helpers:
        helper.start()
    try:
        read(0)
    finally:
        for helper in helpers:
            helper.join()
    return all(intact)


def _read_layer(descriptor: int, rows: Iterator[NDArray[np.uint8]], offset: int, expected: int) -> bool:
    checksum = 0
    for row in rows:
        try:
            if os.preadv(descriptor, [row.data], offset) != row.nbytes:
                return False
        except OSError:
            return False
        offset += row.nbytes
        checksum = zlib.crc32(row.data, checksum)
    return checksum == expected
