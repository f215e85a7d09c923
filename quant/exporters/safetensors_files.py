"""Lay out safetensors files: headers, offsets, shards and their index."""

from __future__ import annotations

import json
from collections.abc import Sequence

from quant.exporters.export_plan import ExportSpec, FileEntry, TensorExport, WeightFile, divide_into_shards
from quant.safe_files import SINGLE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME

DTYPES = {"bf16": "BF16", "f16": "F16", "f32": "F32", "i32": "I32", "i64": "I64"}
_ITEM_BYTES = {"bf16": 2, "f16": 2, "f32": 4, "i32": 4, "i64": 8}
_ALIGNMENT = 8


def weight_files(tensors: Sequence[TensorExport], spec: ExportSpec) -> tuple[tuple[WeightFile, ...], dict[str, bytes]]:
    """Return model.safetensors, or shards and the file of their index."""
    shards = divide_into_shards(tensors, spec.shard_bytes)
    if len(shards) == 1:
        return (_weight_file(SINGLE_WEIGHTS_NAME, shards[0]),), {}
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    files = tuple(_weight_file(name, shard) for name, shard in zip(names, shards, strict=True))
    places = {entry.name: file.name for file in files for tensor in file.tensors for entry in tensor.entries}
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)},
        "weight_map": dict(sorted(places.items())),
    }
    return files, {WEIGHTS_INDEX_NAME: json_file(index)}


def json_file(value: object) -> bytes:
    """Return `value` as the content of a JSON file."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def _weight_file(name: str, tensors: tuple[TensorExport, ...]) -> WeightFile:
    """Lay out one file. Larger types come first, so that every tensor is aligned to its type, as readers expect."""
    entries: list[FileEntry] = [entry for tensor in tensors for entry in tensor.entries]
    entries.sort(key=lambda entry: -_ITEM_BYTES[entry.dtype])
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets, position = {}, 0
    for entry in entries:
        offsets[entry.name] = position
        header[entry.name] = {
            "dtype": DTYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [position, position + entry.nbytes],
        }
        position += entry.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    prefix = len(text).to_bytes(8, "little") + text
    shifted = {entry: offset + len(prefix) for entry, offset in offsets.items()}
    return WeightFile(name, prefix, tensors, shifted, len(prefix) + position)
