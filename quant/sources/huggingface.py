"""Reading a Hugging Face Qwen2 checkpoint: shard index, safetensors headers, mapped weights.

The safetensors format: u64 little-endian header length, a JSON object {name: {dtype, shape, data_offsets}} with offsets
relative to the end of the header, then the data. It is parsed here because safetensors' NumPy reader knows no bfloat16,
and because every number in a downloaded file is to be checked before it is used as an address.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from quant.config import ModelConfig
from quant.errors import CheckpointError
from quant.families import expected_tensors
from quant.files import COPIED_FILES, is_regular, open_regular, parse_json_object, read_bounded, read_json_object
from quant.formats.dense import bf16_to_f32
from quant.values import shown

MAX_HEADER_BYTES = 16 << 20  # The format allows 100 MB; 1,024 layers need 2 MB.
MAX_INDEX_BYTES = 16 << 20
_MAX_NAME_BYTES = 255  # of a file, on every file system that a checkpoint is found on
_ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
_NAMES = {"BF16": "bf16", "F16": "f16", "F32": "f32"}
_MAX_DIMENSIONS = 8
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


@dataclass(frozen=True)
class SourceTensor:
    """Where one tensor lies: absolute byte range in `file`, safetensors dtype, shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Checkpoint:
    """A checkpoint folder, opened: headers are read and checked, weights are mapped when first asked for."""

    def __init__(self, folder: Path, tensors: dict[str, SourceTensor], fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        """SHA-256 (hex) over the small files, shard headers and sizes, and a sample of the weights."""
        self._tensors = tensors
        self._maps: dict[Path, mmap.mmap] = {}

    @classmethod
    def open(cls, folder: str | Path) -> Checkpoint:
        """Open `folder`: model.safetensors, or the shards that model.safetensors.index.json names.

        Raises CheckpointError for anything missing, malformed, out of bounds or contradictory.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder; give the folder that holds config.json")
        files = _shards(folder)
        tensors: dict[str, SourceTensor] = {}
        digest = hashlib.sha256()
        for file, listed in files.items():
            found, header, sample = read_header(file)
            _check_listing(file, listed, found)
            for name, tensor in found.items():
                if name in tensors:
                    raise CheckpointError(
                        f"tensor {_brief(name)} is in two shards: {tensors[name].file.name} and {file.name}"
                    )
                tensors[name] = tensor
            digest.update(f"{file.name}\0".encode() + hashlib.sha256(header).digest())
            digest.update(sample)
        for name in COPIED_FILES:
            path = folder / name
            present = path.exists()
            digest.update(hashlib.sha256(read_bounded(path, CheckpointError)).digest() if present else b"absent")
        return cls(folder, tensors, digest.hexdigest())

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in file order."""
        return tuple(self._tensors)

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.stop - tensor.start for tensor in self._tensors.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of tensor `name`. Raises CheckpointError if there is none."""
        return self._find(name).shape

    def dtype(self, name: str) -> str:
        """Storage type of tensor `name`: "bf16", "f16" or "f32"."""
        return _NAMES[self._find(name).dtype]

    def nbytes(self, name: str) -> int:
        """Bytes of tensor `name` as stored."""
        tensor = self._find(name)
        return tensor.stop - tensor.start

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows start..stop of tensor `name` (elements, if it is a vector) as new float32 memory.

        bf16 and f16 widen exactly. Values are not checked here: NaN and Inf pass through.
        """
        raw = self._raw(name, start, stop)
        if raw.dtype == np.uint16:
            return bf16_to_f32(raw)
        return raw.astype(np.float32)

    def bits(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint16]:
        """Rows start..stop of a bf16 tensor as its u16 bits, new memory."""
        if self._find(name).dtype != "BF16":
            raise CheckpointError(f"tensor {name} is {self.dtype(name)}, not bf16")
        return self._raw(name, start, stop).copy()

    def release(self, name: str, start: int, stop: int) -> None:
        """Tell the kernel that rows start..stop will not be read again, so that their pages leave this process."""
        tensor = self._find(name)
        row_bytes = (tensor.stop - tensor.start) // tensor.shape[0]
        first = -(-(tensor.start + start * row_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (tensor.start + stop * row_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and tensor.file in self._maps and hasattr(mmap, "MADV_DONTNEED"):
            self._maps[tensor.file].madvise(mmap.MADV_DONTNEED, first, last - first)

    def validate(self, config: ModelConfig) -> list[str]:
        """Compare the tensors with `config`; returns remarks that are worth showing.

        Raises CheckpointError for a missing or unexpected tensor, or a shape that contradicts the config; the message
        names both numbers. A tied model may carry its own lm_head.weight, and old files a table of rotary frequencies:
        these are left out and remarked on.
        """
        expected = expected_tensors(config)
        present = set(self._tensors)
        remarks = []
        for name in sorted(present - set(expected)):
            if name == "lm_head.weight" and config.tie_word_embeddings:
                remarks.append(f"{name} is left out: tie_word_embeddings is true, so the embedding is the head")
                present.remove(name)
            elif name.endswith(".rotary_emb.inv_freq"):
                remarks.append(f"{name} is left out: rotary frequencies follow from config.json")
                present.remove(name)
        contradictions = [
            *_layer_contradiction(present, config),
            *_shape_contradictions({name: self._tensors[name].shape for name in present}, expected, config),
        ]
        if contradictions:
            raise CheckpointError(
                f"{self.folder}: config.json contradicts the tensors: {'; '.join(contradictions)}; "
                "one of the two is from another model"
            )
        missing = [name for name in expected if name not in present]
        if missing:
            raise CheckpointError(
                f"{self.folder}: config.json asks for {_some(missing)} that the checkpoint lacks; "
                "download the checkpoint again or correct config.json"
            )
        unexpected = sorted(present - set(expected))
        if unexpected:
            raise CheckpointError(
                f"{self.folder} holds {_some(unexpected)} that a Qwen2 model with this config.json lacks; "
                "is it the right checkpoint?"
            )
        return remarks

    def close(self) -> None:
        """Unmap the files."""
        for mapped in self._maps.values():
            with suppress(BufferError):  # a view is still alive somewhere, and unmaps when it goes
                mapped.close()
        self._maps.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _find(self, name: str) -> SourceTensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.folder} has no tensor {name}") from None

    def _raw(self, name: str, start: int, stop: int | None) -> NDArray[Any]:
        """A view of the mapped file; it must not outlive the call that asked for it."""
        tensor = self._find(name)
        mapped = self._maps.get(tensor.file)
        if mapped is None:
            try:
                with tensor.file.open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as exc:  # ValueError: the file is empty by now
                raise CheckpointError(f"{tensor.file} cannot be mapped: {exc}") from exc
            mapped = self._maps.setdefault(tensor.file, mapped)  # threads may race here; one mapping stays
        if tensor.stop > len(mapped):
            raise CheckpointError(f"{tensor.file} shrank while it was read; download it again")
        count = tensor.shape[0]
        stop = count if stop is None else stop
        if not 0 <= start <= stop <= count:
            raise CheckpointError(f"rows {start}..{stop} of tensor {name} were asked for; it has {count}")
        dtype = np.dtype({"BF16": "<u2", "F16": "<f2", "F32": "<f4"}[tensor.dtype])
        width = math.prod(tensor.shape[1:])
        offset = tensor.start + start * width * dtype.itemsize
        flat = np.frombuffer(mapped, dtype=dtype, count=(stop - start) * width, offset=offset)
        return flat.reshape(stop - start, *tensor.shape[1:])


def read_header(file: Path) -> tuple[dict[str, SourceTensor], bytes, bytes]:
    """Parse and check the header of one safetensors file; returns tensors, the header's bytes, and a sample's digest.

    Refuses: lengths beyond 100 MB or the file, bad JSON, unknown dtypes, shapes that disagree with the byte range,
    ranges that overlap, leave holes, or end anywhere but at the end of the file.
    """
    try:
        with open_regular(file, CheckpointError) as stream:
            size = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8:
                raise CheckpointError(f"{file} has {size} bytes, too few for a safetensors file; download it again")
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(
                    f"{file}: the header claims {length:,} bytes, but the file has {size:,} and headers are at most "
                    f"{MAX_HEADER_BYTES:,}; the file is truncated or not a safetensors file"
                )
            header = stream.read(length)
            sample = _sample(stream, size)
    except OSError as exc:
        raise CheckpointError(f"{file} cannot be read: {exc.strerror}") from exc
    entries = parse_json_object(header, f"the header of {file}", CheckpointError)
    entries.pop("__metadata__", None)
    tensors = {name: _entry(file, name, entry, 8 + length, size) for name, entry in entries.items()}
    _check_ranges(file, tensors, 8 + length, size)
    return tensors, header, sample


def _entry(file: Path, name: str, entry: object, base: int, size: int) -> SourceTensor:
    where = f"{file}: tensor {_brief(name)!r}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where} is not described by an object; download the file again")
    dtype = entry.get("dtype")
    shape, offsets = _natural_numbers(entry.get("shape")), _natural_numbers(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise CheckpointError(f"{where} has dtype {shown(dtype)}; supported are BF16, F16 and F32")
    if not shape or len(shape) > _MAX_DIMENSIONS or min(shape) < 1:
        raise CheckpointError(f"{where} has the shape {shown(entry.get('shape'))}; expected positive integers")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where} has data_offsets {shown(entry.get('data_offsets'))}; expected [start, end]")
    start, stop = base + offsets[0], base + offsets[1]
    if stop > size:
        raise CheckpointError(f"{where} ends at byte {stop:,}, but the file has {size:,}; it is truncated")
    wanted = math.prod(shape) * _ITEM_BYTES[dtype]
    if stop - start != wanted:
        raise CheckpointError(f"{where}: {dtype}{shape} takes {wanted:,} bytes, but its range has {stop - start:,}")
    return SourceTensor(file, dtype, tuple(shape), start, stop)


def _natural_numbers(value: object) -> list[int] | None:
    """`value` if it is a list of integers from 0 to 2^63 - 1, else None."""
    if not isinstance(value, list):
        return None
    natural = all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 63 for item in value)
    return value if natural else None


def _check_ranges(file: Path, tensors: dict[str, SourceTensor], base: int, size: int) -> None:
    """Byte ranges must follow each other without overlap or hole up to the end of the file, as the format asks."""
    position, previous = base, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start < position:
            raise CheckpointError(f"{file}: tensors {previous} and {_brief(name)} overlap; download the file again")
        if tensor.start > position:
            raise CheckpointError(
                f"{file}: {tensor.start - position:,} bytes between {previous} and {_brief(name)} belong to no tensor"
            )
        position, previous = tensor.stop, _brief(name)
    if position != size:
        raise CheckpointError(f"{file}: {size - position:,} bytes after {previous} belong to no tensor")


def _shards(folder: Path) -> dict[Path, set[str] | None]:
    """Weight files in order, each with the names that the index lists for it (None without an index)."""
    index_file = folder / INDEX_NAME
    if not index_file.exists():
        single = folder / SINGLE_NAME
        if not is_regular(single):
            raise CheckpointError(f"{folder} has neither {SINGLE_NAME} nor {INDEX_NAME}; is it a checkpoint folder?")
        return {single: None}
    weight_map = read_json_object(index_file, CheckpointError, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_file} has no weight_map; download it again")
    shards: dict[Path, set[str] | None] = {}
    listed: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not _is_plain_name(file):
            raise CheckpointError(
                f"{index_file}: tensor {_brief(name)} is said to be in {shown(file)}, which is not a plain file name; "
                "files outside the folder are not read"
            )
        listed.setdefault(file, set()).add(name)
    for file in sorted(listed):
        if not is_regular(folder / file):
            raise CheckpointError(f"{folder / file} is missing, but {INDEX_NAME} names it; download the shard")
        shards[folder / file] = listed[file]
    return shards


def _is_plain_name(file: object) -> bool:
    """Return whether `file` can only name a file inside its folder, on every system."""
    if not isinstance(file, str) or not file.isprintable() or len(file.encode(errors="replace")) > _MAX_NAME_BYTES:
        return False
    return file not in ("", ".", "..") and not set(file) & set("/\\")


def _brief(name: str) -> str:
    """Return the beginning of a tensor's name, for messages."""
    return name if len(name) <= 200 else name[:200] + "…"


def _check_listing(file: Path, listed: set[str] | None, found: Iterable[str]) -> None:
    if listed is None:
        return
    absent, extra = sorted(listed - set(found)), sorted(set(found) - listed)
    if absent:
        raise CheckpointError(f"{file} lacks {_some(absent)} that {INDEX_NAME} places there")
    if extra:
        raise CheckpointError(f"{file} holds {_some(extra)} that {INDEX_NAME} does not place there")


def _layer_contradiction(names: Iterable[str], config: ModelConfig) -> list[str]:
    """A wrong layer count, which says more than the names of a dozen missing tensors."""
    prefix = "model.layers."
    numbers = {name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)}
    layers = {int(number) for number in numbers if number.isdecimal() and len(number) < 6}
    if not layers or max(layers) + 1 == config.num_layers:
        return []
    return [f"num_hidden_layers is {config.num_layers}, but the tensors have {max(layers) + 1} layers"]


def _shape_contradictions(
    shapes: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], config: ModelConfig
) -> list[str]:
    """The first wrong shape, with both shapes and the config values behind the expected one, and how many follow."""
    wrong = [name for name, shape in expected.items() if shapes.get(name, shape) != shape]
    if not wrong:
        return []
    first = wrong[0]
    more = f" (and {len(wrong) - 1} more shapes)" if len(wrong) > 1 else ""
    return [
        f"{first} has shape {list(shapes[first])}, but {_dimensions(first, config)} "
        f"would need {list(expected[first])}{more}"
    ]


def _dimensions(name: str, config: ModelConfig) -> str:
    """The config values behind the expected shape of `name`, for messages."""
    hidden = f"hidden_size {config.hidden_size}"
    if ".q_proj." in name or ".o_proj." in name:
        return f"{hidden} and num_attention_heads {config.num_heads} of head_dim {config.head_dim}"
    if ".k_proj." in name or ".v_proj." in name:
        return f"{hidden} and num_key_value_heads {config.num_kv_heads} of head_dim {config.head_dim}"
    if ".mlp." in name:
        return f"{hidden} and intermediate_size {config.intermediate_size}"
    if "embed_tokens" in name or "lm_head" in name:
        return f"{hidden} and vocab_size {config.vocab_size}"
    return hidden


def _some(names: list[str]) -> str:
    """ "tensor x" or "3 tensors (x, y, …)", for messages."""
    if len(names) == 1:
        return f"tensor {_brief(names[0])}"
    shown = ", ".join(name[:80] for name in names[:3])
    return f"{len(names)} tensors ({shown}{', …' if len(names) > 3 else ''})"


def _sample(stream: BinaryIO, size: int, pieces: int = 16, piece_bytes: int = 4096) -> bytes:
    """SHA-256 of pieces spread over the file: tells two trainings of one architecture apart without reading it all."""
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    for piece in range(pieces):
        stream.seek(piece * max(0, size - piece_bytes) // (pieces - 1))
        digest.update(stream.read(piece_bytes))
    return digest.digest()
