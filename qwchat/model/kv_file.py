"""The KV cache on disk, so that a continued conversation evaluates nothing again.

One file, little-endian:

    magic 8 bytes, version u32, kind of cache 8 bytes, fingerprint 16 bytes, layout 32 bytes, layers u32,
    positions u32, a CRC-32 for each layer (layers) u32, token ids (positions) u32, CRC-32 of all of this u32,
    zeros up to a multiple of 64 bytes; then, layer by layer, the pieces of `Cache.segments` without gaps.

A piece has the same length in a cache of any capacity, so a file fits every cache that has enough positions.
`fingerprint` is the model's, `layout` the cache's `layout_id`.

A file that is not exactly as it was written is refused, and the tokens are evaluated again. Since the file holds
nothing that cannot be computed from them, writing does not wait for the disk either.
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
    """Return the fixed fields at the beginning of a file."""
    return _HEAD.pack(
        *(_MAGIC, _VERSION, cache.kind.encode(), fingerprint.encode(), cache.layout_id),
        *(len(cache.layers), positions),
    )


def _head_bytes(layers: int, positions: int) -> int:
    """Return the size of the head: the fixed fields, both tables and their checksum."""
    return _HEAD.size + 4 * layers + 4 * positions + _CHECKSUM.size


def _data_offset(layers: int, positions: int) -> int:
    """Return the offset of the first piece."""
    return -(-_head_bytes(layers, positions) // 64) * 64


def file_bytes(cache: Cache, positions: int) -> int:
    """Return the size of the file that `save` writes for the first `positions` positions."""
    rows = sum(sum(cache.segment_bytes(layer, positions)) for layer in cache.layers)
    return _data_offset(len(cache.layers), positions) + rows


def save(path: Path, cache: Cache, ids: NDArray[np.int64], fingerprint: str) -> int:
    """Write the keys and values of some tokens to a file that only the user can read.

    The file appears under its name only when it is complete.

    Args:
        path: the file.
        cache: holds the tokens' keys and values from position 0 on.
        ids: (positions,) i64.
        fingerprint: the model's.

    Returns:
        The size of the file in bytes.

    Raises:
        SnapshotError: the file cannot be written.
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
    # The head is written last: without it the file is not a snapshot.
    head = _head_fields(cache, fingerprint, len(ids)) + checksums.tobytes() + ids.astype("<u4").tobytes()
    file.seek(0)
    file.write((head + _CHECKSUM.pack(zlib.crc32(head))).ljust(start, b"\0"))


def restore(path: Path, cache: Cache, context: int, fingerprint: str, threads: int = 1) -> NDArray[np.int64]:
    """Read a file into a cache.

    Args:
        path: the file.
        cache: overwritten from position 0 on.
        context: the largest number of positions to accept.
        fingerprint: the model's.
        threads: number of threads that read.

    Returns:
        The token ids (positions,) i64 whose keys and values the cache now holds.

    Raises:
        FileNotFoundError: there is no file; the cache is unchanged.
        SnapshotError: the file does not fit, or is not as it was written. Nothing in the cache may be used then.
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
    try:  # Checksums detect damage, but not a file that someone else made.
        return open_private(path, buffering=0)
    except NotPrivateError as error:
        raise SnapshotError(f"{path} is not a file that only you can write") from error


def _read_head(
    file: BinaryIO, path: Path, cache: Cache, context: int, fingerprint: str
) -> tuple[NDArray[np.int64], list[int]]:
    """Read and check the head; return the token ids and the checksum of each layer."""
    start = file.read(_HEAD.size)
    if len(start) < _HEAD.size or start[: len(_MAGIC)] != _MAGIC:
        raise SnapshotError(f"{path} is damaged")
    _, version, kind, file_fingerprint, *_, positions = _HEAD.unpack(start)
    if version != _VERSION:
        raise SnapshotError(f"{path} was written by another version of qwchat")
    if file_fingerprint != fingerprint.encode():
        raise SnapshotError(f"{path} belongs to another model")
    if kind.rstrip(b"\0") != cache.kind.encode():
        raise SnapshotError(ArgumentMessage(f"{path} has another ", Argument("kv"), f" than {cache.kind}"))
    if start != _head_fields(cache, fingerprint, positions):
        others = (Argument("activations"), ", on another device or by another version of qwchat")
        raise SnapshotError(ArgumentMessage(f"{path} was written with other ", *others))
    if positions > context:
        raise SnapshotError(f"{path} holds {positions:,} tokens, but the context is {context:,}")
    layers = len(cache.layers)
    tables = file.read(_head_bytes(layers, positions) - _HEAD.size)
    is_complete = os.fstat(file.fileno()).st_size == file_bytes(cache, positions)
    if not is_complete or zlib.crc32(start + tables[:-4]).to_bytes(4, "little") != tables[-4:]:
        raise SnapshotError(f"{path} is damaged")
    ids = np.frombuffer(tables, "<u4", positions, 4 * layers).astype(np.int64)
    if positions and int(ids.max()) >= cache.config.vocab_size:
        raise SnapshotError(f"{path} is damaged")
    return ids, np.frombuffer(tables, "<u4", layers).tolist()


def _read_rows(file: BinaryIO, cache: Cache, checksums: list[int], start: int, positions: int, threads: int) -> bool:
    """Read all layers with some threads; return whether every layer is as it was written. `start`: its offset."""
    offsets = [start]
    for layer in cache.layers:
        offsets.append(offsets[-1] + sum(cache.segment_bytes(layer, positions)))
    intact = [False] * len(cache.layers)

    def read(first: int) -> None:
        for number in range(first, len(cache.layers), threads):
            with cache.writable_segments(cache.layers[number], positions) as rows:
                intact[number] = _read_layer(file.fileno(), rows, offsets[number], checksums[number])

    # Half of the time goes into page faults of the cache's new memory and into checksums, which threads share.
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
    """Read the pieces of one layer; return whether they are complete and match the checksum."""
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
