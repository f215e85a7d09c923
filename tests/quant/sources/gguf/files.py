"""Write GGUF files for tests, also wrong ones."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STRING, ARRAY = 8, 9
CODES = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


@dataclass(frozen=True)
class Typed:
    """Value with its type in the file; for a list, the type of its items."""

    kind: int
    value: Any


@dataclass(frozen=True)
class Stored:
    """Tensor: type number, shape with the slowest dimension first, bytes; offset None: after the one before."""

    kind: int
    shape: Sequence[int]
    data: bytes
    offset: int | None = None


def text(value: str | bytes) -> bytes:
    """Return a string as the format stores it."""
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def plain(kind: int, value: Any) -> bytes:
    """Return one value without its type."""
    return text(value) if kind == STRING else struct.pack(CODES[kind], value)


def kind_of(value: Any) -> int:
    """Return the type in which the usual writers store a value of Python."""
    return {bool: 7, int: 4, float: 6, str: STRING, bytes: STRING}[type(value)]


def pair(key: str | bytes, value: Any) -> bytes:
    """Return a key and its value with its type."""
    kind, content = (value.kind, value.value) if isinstance(value, Typed) else (None, value)
    if isinstance(content, list):
        kind = kind_of(content[0]) if kind is None else kind
        items = b"".join(plain(kind, item) for item in content)
        return text(key) + struct.pack("<IIQ", ARRAY, kind, len(content)) + items
    kind = kind_of(content) if kind is None else kind
    return text(key) + struct.pack("<I", kind) + plain(kind, content)


def info(name: str | bytes, kind: int, shape: Sequence[int], offset: int) -> bytes:
    """Return one tensor info."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)


def gguf_file(
    metadata: Mapping[str, Any] | Sequence[tuple[str | bytes, Any]] = (),
    tensors: Mapping[str, Stored] | Sequence[tuple[str | bytes, Stored]] = (),
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """Return a file.

    Args:
        metadata: values by key, or pairs.
        tensors: tensors by name, or pairs.
        version: version in the header.
        counts: numbers of tensors and keys in the header. None: the true ones.
        alignment: alignment of the data. It is not added to the metadata.
    """
    pairs = [*metadata.items()] if isinstance(metadata, Mapping) else [*metadata]
    named = [*tensors.items()] if isinstance(tensors, Mapping) else [*tensors]
    infos, data = b"", b""
    for name, tensor in named:
        data += b"\0" * (-len(data) % alignment)
        infos += info(name, tensor.kind, tensor.shape, len(data) if tensor.offset is None else tensor.offset)
        data += tensor.data
    header = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(named), len(pairs))))
    header += b"".join(pair(key, value) for key, value in pairs) + infos
    return header + (b"\0" * (-len(header) % alignment) + data if named else b"")
