"""The KV cache on disk: what a conversation has read, so that going on with it reads nothing again.

One file, little-endian:

    magic 8 bytes, version u32, kind u32, fingerprint 16 bytes, code 32 bytes,
    layers u32, num_kv_heads u32, head_dim u32, positions u32,
    a CRC-32 for each layer (layers) u32, token ids (positions) u32, CRC-32 of all of this u32, zeros up to 64 bytes;
    then layer by layer the rows of :meth:`qwchat.cpu.cache.KVCache.rows`, without gaps.

The layout is that of the kernels, which is the same at every SIMD level, and each row is the beginning of a row of the
cache, so a file fits a cache of any capacity that has room for its positions.  ``fingerprint`` is the model's;
``code`` hashes the configuration and the sources that compute keys and values, since another version may round
otherwise.  A file that is anything else than what was written is refused, and the tokens are read again: it holds
nothing that cannot be had from them.  That is why writing does not wait for the disk either.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from quant.config import ModelConfig
from quant.files import NotPrivateError, open_private, replacing
from qwchat.cpu.cache import KVCache
from qwchat.cpu.kernels import objects
from qwchat.cpu.kernels.records import KV_KINDS
from qwchat.errors import SnapshotError
from qwchat.model import rope

_MAGIC, _VERSION = b"qwchatKV", 1
_HEAD = struct.Struct("<8sII16s32sIIII")
_CHECKSUM = struct.Struct("<I")


def code_digest(config: ModelConfig) -> bytes:
    """The hash (32 bytes) of everything besides the weights that keys and values depend on."""
    sources = objects.KERNELS.source_digest + Path(rope.__file__).read_bytes()
    return hashlib.sha256(sources + repr(config).encode()).digest()


def _fields(cache: KVCache, fingerprint: str, positions: int) -> bytes:
    config = cache.config
    return _HEAD.pack(
        *(_MAGIC, _VERSION, KV_KINDS[cache.kind], fingerprint.encode(), code_digest(config)),
        *(config.num_layers, config.num_kv_heads, config.head_dim, positions),
    )


def _head_bytes(layers: int, positions: int) -> int:
    """Size of the head with its tables and their checksum."""
    return _HEAD.size + 4 * layers + 4 * positions + _CHECKSUM.size


def _start(layers: int, positions: int) -> int:
    """Where the rows begin."""
    return -(-_head_bytes(layers, positions) // 64) * 64


def file_bytes(cache: KVCache, positions: int) -> int:
    """Size of the file that :func:`save` makes."""
    layers = cache.config.num_layers
    return _start(layers, positions) + layers * sum(row.nbytes for row in cache.rows(0, positions))


def save(path: Path, cache: KVCache, ids: NDArray[np.int64], fingerprint: str) -> int:
    """Writes the positions of ``ids`` (positions,) to ``path``, readable for the user alone; the size in bytes.

    The file appears under its name when it is whole.  Raises SnapshotError where it cannot be written.
    """
    try:
        with replacing(path, durable=False, part=path.with_name(f"{path.name}.part")) as file:
            _write(file, cache, ids, fingerprint)
    except OSError as error:
        raise SnapshotError(f"the snapshot {path} cannot be written: {error.strerror or error}") from error
    return file_bytes(cache, len(ids))


def _write(file: BinaryIO, cache: KVCache, ids: NDArray[np.int64], fingerprint: str) -> None:
    layers = cache.config.num_layers
    checksums = np.zeros(layers, "<u4")
    file.seek(_start(layers, len(ids)))
    for layer in range(layers):
        checksum = 0
        for row in cache.rows(layer, len(ids)):
            file.write(row.data)
            checksum = zlib.crc32(row.data, checksum)
        checksums[layer] = checksum
    # The head comes last: without it the file is none.
    head = _fields(cache, fingerprint, len(ids)) + checksums.tobytes() + ids.astype("<u4").tobytes()
    file.seek(0)
    file.write((head + _CHECKSUM.pack(zlib.crc32(head))).ljust(_start(layers, len(ids)), b"\0"))


def restore(path: Path, cache: KVCache, context: int, fingerprint: str, threads: int = 1) -> NDArray[np.int64]:
    """Reads ``path`` into the cache; the token ids (positions,) i64 whose keys and values it now holds.

    ``context``: the most positions that may come; ``threads``: how many read.  Raises FileNotFoundError, and
    SnapshotError for a file that does not fit or is not as it was written: nothing in the cache is to be used then.
    """
    try:
        with _open(path) as file:
            ids, checksums = _read_head(file, path, cache, context, fingerprint)
            start = _start(len(checksums), len(ids))
            if not _read_rows(file, cache, checksums, start, len(ids), min(threads, len(checksums))):
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
    file: BinaryIO, path: Path, cache: KVCache, context: int, fingerprint: str
) -> tuple[NDArray[np.int64], list[int]]:
    """Token ids, and a checksum for each layer, of a file of the right size."""
    start = file.read(_HEAD.size)
    if len(start) < _HEAD.size or start[: len(_MAGIC)] != _MAGIC:
        raise SnapshotError(f"{path} is damaged")
    _, version, kind, its_model, _, *_, positions = _HEAD.unpack(start)
    if version != _VERSION:
        raise SnapshotError(f"{path} was written by another version of qwchat")
    if its_model != fingerprint.encode():
        raise SnapshotError(f"{path} belongs to another model")
    if kind != KV_KINDS[cache.kind]:
        raise SnapshotError(f"{path} has another --kv than {cache.kind}")
    if start != _fields(cache, fingerprint, positions):
        raise SnapshotError(f"{path} was written by another version of qwchat")
    if positions > context:
        raise SnapshotError(f"{path} holds {positions:,} tokens, and the context {context:,}")
    layers = cache.config.num_layers
    tables = file.read(_head_bytes(layers, positions) - _HEAD.size)
    whole = os.fstat(file.fileno()).st_size == file_bytes(cache, positions)
    if not whole or zlib.crc32(start + tables[:-4]).to_bytes(4, "little") != tables[-4:]:
        raise SnapshotError(f"{path} is damaged")
    ids = np.frombuffer(tables, "<u4", positions, 4 * layers).astype(np.int64)
    if positions and int(ids.max()) >= cache.config.vocab_size:
        raise SnapshotError(f"{path} is damaged")
    return ids, np.frombuffer(tables, "<u4", layers).tolist()


def _read_rows(file: BinaryIO, cache: KVCache, checksums: list[int], start: int, positions: int, threads: int) -> bool:
    """Whether every layer came as it was written.  ``start``: where the first begins."""
    layers = len(checksums)
    layer_bytes = (file_bytes(cache, positions) - start) // layers
    intact = [False] * layers

    def read(first: int) -> None:
        for layer in range(first, layers, threads):
            rows = cache.rows(layer, positions)
            intact[layer] = _read_layer(file.fileno(), rows, start + layer * layer_bytes, checksums[layer])

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
