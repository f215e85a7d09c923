"""Lay out GGUF files, version 3: metadata, tensor infos, offsets and splits.

A file is "GGUF", u32 version, u64 tensors, u64 metadata pairs; the pairs; the tensor infos (name, u32 dimensions, sizes
as u64 with the fastest first, u32 type, u64 offset); and the data, which begins at a multiple of 32 bytes, as does each
tensor in it. The first file of a split model has all metadata.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quant.exporters.export_plan import ExportSpec, TensorExport, WeightFile, divide_into_shards
from quant.exporters.gguf_types import BLOCK_TYPES_BY_NAME

ALIGNMENT = 32
_VERSION = 3
_ARRAY, _STRING = 9, 8
_SCALARS: dict[type, tuple[int, str]] = {
    bool: (7, "<?"),
    int: (4, "<I"),
    float: (6, "<f"),
    np.uint16: (2, "<H"),
    np.int32: (5, "<i"),
}
"""Number and encoding of the type in the file, by type in Python."""


def gguf_files(
    stem: str, tensors: Sequence[TensorExport], metadata: Mapping[str, object], spec: ExportSpec
) -> tuple[WeightFile, ...]:
    """Return STEM.gguf, or the files of a split model, STEM-00001-of-00003.gguf."""
    shards = divide_into_shards(tensors, spec.shard_bytes)
    if len(shards) == 1:
        return (_weight_file(f"{stem}.gguf", shards[0], metadata),)
    files = []
    for number, shard in enumerate(shards):
        split = {
            "split.no": np.uint16(number),
            "split.count": np.uint16(len(shards)),
            "split.tensors.count": np.int32(len(tensors)),
        }
        name = f"{stem}-{number + 1:05d}-of-{len(shards):05d}.gguf"
        files.append(_weight_file(name, shard, {**metadata, **split} if number == 0 else split))
    return tuple(files)


def _weight_file(name: str, tensors: tuple[TensorExport, ...], metadata: Mapping[str, object]) -> WeightFile:
    entries = [entry for tensor in tensors for entry in tensor.entries]
    infos, offsets, position = [], {}, 0
    for entry in entries:
        sizes = struct.pack(f"<I{len(entry.shape)}Q", len(entry.shape), *reversed(entry.shape))
        kind = BLOCK_TYPES_BY_NAME[entry.dtype].number
        infos.append(_text(entry.name) + sizes + struct.pack("<IQ", kind, position))
        offsets[entry.name] = position
        position = _align(position + entry.nbytes)
    pairs = [_text(key) + _typed(value) for key, value in metadata.items()]
    header = b"GGUF" + struct.pack("<IQQ", _VERSION, len(entries), len(pairs)) + b"".join(pairs) + b"".join(infos)
    header += bytes(_align(len(header)) - len(header))
    shifted = {entry: offset + len(header) for entry, offset in offsets.items()}
    return WeightFile(name, header, tensors, shifted, len(header) + position)


def _align(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: object) -> bytes:
    """Return a value with the number of its type. The integers of a list are i32, others u32."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, list):
        return struct.pack("<I", _ARRAY) + _array(value)
    number, encoding = _SCALARS[type(value)]
    return struct.pack("<I", number) + struct.pack(encoding, value)


def _array(items: list[Any]) -> bytes:
    if items and isinstance(items[0], str):
        return struct.pack("<IQ", _STRING, len(items)) + b"".join(map(_text, items))
    return struct.pack("<IQ", _SCALARS[np.int32][0], len(items)) + np.array(items, "<i4").tobytes()
