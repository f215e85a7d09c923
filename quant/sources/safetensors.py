"""safetensors files: position, type and shape of each tensor.

A file is a u64 little-endian header length, a JSON object {name: {dtype, shape, data_offsets}} with offsets relative to
the end of the header, and the data (https://github.com/huggingface/safetensors#format). The header is parsed here
because the NumPy reader of safetensors does not support bfloat16, and because every number of a downloaded file must be
checked before it is used as an address.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from quant.errors import CheckpointError
from quant.json_fields import short_repr
from quant.safe_files import MAX_HEADER_BYTES, open_regular_file, parse_json_object
from quant.sources.fingerprint import sample_digest
from quant.sources.source import short_name

_FLOAT_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
_INTEGER_BYTES = {"U8": 1, "I32": 4, "I64": 8}
_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class StoredTensor:
    """Position of one tensor: absolute byte range in `file`, safetensors dtype, shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file."""
        return self.stop - self.start


def read_header(file: Path, *, integers: bool = False) -> tuple[dict[str, StoredTensor], bytes, bytes]:
    """Parse and check the header of one safetensors file.

    Args:
        file: file to read.
        integers: whether the file may contain U8, I32 and I64 tensors besides BF16, F16 and F32.

    Returns:
        The tensors by name, the bytes of the header, and the digest of a sample of the file.

    Raises:
        CheckpointError: the header exceeds 16 MiB or the file, is not valid JSON, has an unknown dtype or a shape that
            contradicts its byte range, or the ranges overlap, leave gaps or do not end at the end of the file.
    """
    try:
        with open_regular_file(file, CheckpointError) as stream:
            size = os.fstat(stream.fileno()).st_size
            header = _read_header(stream, file, size)
            sample = sample_digest(stream, size)
    except OSError as exc:
        raise CheckpointError(f"{file} cannot be read: {exc.strerror}") from exc
    return _parse_header(header, file, size, integers), header, sample


def parse_header(header_file: Path, file: Path, size: int, *, integers: bool = False) -> dict[str, StoredTensor]:
    """Parse and check a header that was downloaded before the rest of its file.

    Args:
        header_file: file that begins with the header.
        file: future file of the tensors.
        size: future size of `file` in bytes.
        integers: as for `read_header`.

    Raises:
        CheckpointError: as for `read_header`.
    """
    try:
        with open_regular_file(header_file, CheckpointError) as stream:
            header = _read_header(stream, file, size)
    except OSError as exc:
        raise CheckpointError(f"{file} cannot be read: {exc.strerror}") from exc
    return _parse_header(header, file, size, integers)


def refuse_integers(tensors: Mapping[str, StoredTensor]) -> None:
    """Raise CheckpointError if any of the tensors is not BF16, F16 or F32."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOAT_BYTES:
            raise _unsupported_type(_describe(tensor.file, name), tensor.dtype, _FLOAT_BYTES)


def _read_header(stream: BinaryIO, file: Path, size: int) -> bytes:
    prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8:
        raise CheckpointError(f"{file} has {size} bytes, too few for a safetensors file; download it again")
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(
            f"{file}: the header claims {length:,} bytes, but the file has {size:,} and headers are at most "
            f"{MAX_HEADER_BYTES:,}; the file is truncated or not a safetensors file"
        )
    return stream.read(length)


def _parse_header(header: bytes, file: Path, size: int, integers: bool) -> dict[str, StoredTensor]:
    entries = parse_json_object(header, f"the header of {file}", CheckpointError)
    entries.pop("__metadata__", None)
    base = 8 + len(header)
    item_bytes = _FLOAT_BYTES | _INTEGER_BYTES if integers else _FLOAT_BYTES
    tensors = {name: _parse_entry(file, name, entry, base, size, item_bytes) for name, entry in entries.items()}
    _check_ranges(file, tensors, base, size)
    return tensors


def _parse_entry(
    file: Path, name: str, entry: object, base: int, size: int, item_bytes: Mapping[str, int]
) -> StoredTensor:
    where = _describe(file, name)
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where} has an entry that is not an object; download the file again")
    dtype = entry.get("dtype")
    shape, offsets = _natural_numbers(entry.get("shape")), _natural_numbers(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in item_bytes:
        raise _unsupported_type(where, dtype, item_bytes)
    if not shape or len(shape) > _MAX_DIMENSIONS or min(shape) < 1:
        raise CheckpointError(f"{where} has the shape {short_repr(entry.get('shape'))}; expected positive integers")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            f"{where} has data_offsets {short_repr(entry.get('data_offsets'))}; expected [start, end]"
        )
    start, stop = base + offsets[0], base + offsets[1]
    if stop > size:
        raise CheckpointError(
            f"{where} ends at byte {stop:,}, but the file has {size:,}; it is truncated, download it again"
        )
    expected = math.prod(shape) * item_bytes[dtype]
    if stop - start != expected:
        raise CheckpointError(f"{where}: {dtype}{shape} needs {expected:,} bytes, but its range has {stop - start:,}")
    return StoredTensor(file, dtype, tuple(shape), start, stop)


def _describe(file: Path, name: str) -> str:
    return f"{file}: tensor {short_name(name)!r}"


def _unsupported_type(where: str, dtype: object, supported: Iterable[str]) -> CheckpointError:
    *others, last = supported
    return CheckpointError(f"{where} has dtype {short_repr(dtype)}; supported are {', '.join(others)} and {last}")


def _natural_numbers(value: object) -> list[int] | None:
    """Return `value` if it is a list of integers from 0 to 2^63 - 1, else None."""
    if not isinstance(value, list):
        return None
    natural = all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 63 for item in value)
    return value if natural else None


def _check_ranges(file: Path, tensors: dict[str, StoredTensor], base: int, size: int) -> None:
    """Check that the byte ranges cover the rest of the file without overlaps or gaps, as the format requires."""
    position, previous = base, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start < position:
            raise CheckpointError(f"{file}: tensors {previous} and {short_name(name)} overlap; download the file again")
        if tensor.start > position:
            raise CheckpointError(
                f"{file}: {tensor.start - position:,} bytes between {previous} and {short_name(name)} do not belong "
                "to a tensor; download the file again"
            )
        position, previous = tensor.stop, short_name(name)
    if position != size:
        raise CheckpointError(
            f"{file}: {size - position:,} bytes after {previous} do not belong to a tensor; download it again"
        )
