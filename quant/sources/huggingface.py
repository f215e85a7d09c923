"""Hugging Face checkpoint folders: config.json, tokenizer files, and weights in one or more safetensors files."""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import CheckpointError
from quant.families import MAX_CONFIG_BYTES, parse_config
from quant.formats.dense import bf16_to_f32
from quant.json_fields import short_repr
from quant.model_config import ModelConfig
from quant.safe_files import (
    COPIED_FILES,
    MAX_NAME_BYTES,
    SINGLE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    is_regular_file,
    missing_file_error,
    parse_json_object,
    read_bounded,
    read_json_object,
    too_large_error,
)
from quant.sources.safetensors import StoredTensor, read_header, refuse_integers
from quant.sources.source import Rows, Source, TensorInfo, describe_tensors, short_name

MAX_INDEX_BYTES = 16 << 20
_DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "U8": np.dtype("u1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
_REQUIRED_FILES = ("config.json", "tokenizer.json")


class HuggingFaceCheckpoint(Source):
    """Opened checkpoint folder. Small files are read, headers checked, and weights mapped on first use.

    Attributes:
        stored: position, type and shape of each tensor by name, in file order.
    """

    def __init__(
        self, path: Path, stored: dict[str, StoredTensor], small_files: dict[str, bytes], fingerprint: str
    ) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self.stored = stored
        self._small_files = small_files
        self._maps: dict[Path, mmap.mmap] = {}

    @classmethod
    def open(cls, folder: str | Path, *, integers: bool = False) -> HuggingFaceCheckpoint:
        """Open a folder with model.safetensors, or with the shards that model.safetensors.index.json lists.

        Args:
            folder: checkpoint folder.
            integers: whether the files may contain tensors of integers, which only `raw` reads.

        Raises:
            CheckpointError: a file is missing, malformed or out of bounds, or two files contradict each other.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder; give the folder that holds config.json")
        files = _shards(folder)
        stored: dict[str, StoredTensor] = {}
        digest = hashlib.sha256()
        for file, listed in files.items():
            found, header, sample = read_header(file, integers=integers)
            _check_listing(file, listed, found)
            for name, tensor in found.items():
                if name in stored:
                    raise CheckpointError(
                        f"tensor {short_name(name)} is in two shards, {stored[name].file.name} and {file.name}; "
                        "download both again"
                    )
                stored[name] = tensor
            digest.update(f"{file.name}\0".encode() + hashlib.sha256(header).digest())
            digest.update(sample)
        small_files = {}
        for name in COPIED_FILES:
            if (folder / name).exists():
                small_files[name] = read_bounded(folder / name, CheckpointError)
            digest.update(hashlib.sha256(small_files[name]).digest() if name in small_files else b"absent")
        return cls(folder, stored, small_files, digest.hexdigest())

    def refuse_integers(self) -> None:
        """Raise CheckpointError if the files contain a tensor of integers."""
        refuse_integers(self.stored)

    @property
    def path(self) -> Path:
        """Checkpoint folder."""
        return self._path

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the small files, the shard headers and sizes, and a sample of the weights."""
        return self._fingerprint

    @property
    def config_file(self) -> Path:
        """Path of config.json."""
        return self._path / "config.json"

    @cached_property
    def config_values(self) -> Mapping[str, Any]:
        """Content of config.json, unchecked."""
        file = self.config_file
        data = self._small_files.get("config.json")
        if data is None:
            raise missing_file_error(file, CheckpointError)
        if len(data) > MAX_CONFIG_BYTES:
            raise too_large_error(file, MAX_CONFIG_BYTES, CheckpointError)
        return parse_json_object(data, str(file), CheckpointError)

    @cached_property
    def config(self) -> ModelConfig:
        """Hyperparameters from config.json."""
        return parse_config(self.config_values, str(self.config_file))

    @cached_property
    def files(self) -> Mapping[str, bytes]:
        """Content of the small files to copy into the model folder. JSON files hold valid JSON.

        Raises CheckpointError if the tokenizer is missing, without which a model cannot be used.
        """
        for name in COPIED_FILES:
            file = self._path / name
            if name not in self._small_files and name in _REQUIRED_FILES:
                raise CheckpointError(f"{file} is missing; download the checkpoint's {name} as well")
            if name in self._small_files and name.endswith(".json"):
                parse_json_object(self._small_files[name], str(file), CheckpointError)
        return self._small_files

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in file order."""
        return {
            name: TensorInfo(stored.shape, stored.dtype.lower(), stored.nbytes) for name, stored in self.stored.items()
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Rows:
        """Read rows `start` to `stop`, exclusive, of a matrix (elements of a vector) as new float32 memory.

        bf16 and f16 are converted exactly. Values are not checked: NaN and Inf pass through.
        """
        raw = self.raw(name, start, stop)
        if raw.dtype == np.uint16:
            return bf16_to_f32(raw)
        return raw.astype(np.float32)

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return rows `start` to `stop`, exclusive, as a view of the mapped file. bf16 numbers are u2.

        The caller must not keep the view.
        """
        tensor = self._find(name)
        mapped = self._maps.get(tensor.file)
        if mapped is None:
            try:
                with tensor.file.open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as exc:  # ValueError: the file has become empty
                raise CheckpointError(f"{tensor.file} cannot be memory-mapped: {exc}") from exc
            mapped = self._maps.setdefault(tensor.file, mapped)  # several threads may map it; the first one wins
        if tensor.stop > len(mapped):
            raise CheckpointError(f"{tensor.file} shrank while it was read; download it again")
        count = tensor.shape[0]
        stop = count if stop is None else stop
        if not 0 <= start <= stop <= count:
            raise CheckpointError(f"rows {start}..{stop} of tensor {name} do not exist; it has {count} rows")
        dtype = _DTYPES[tensor.dtype]
        width = math.prod(tensor.shape[1:])
        offset = tensor.start + start * width * dtype.itemsize
        flat = np.frombuffer(mapped, dtype=dtype, count=(stop - start) * width, offset=offset)
        return flat.reshape(stop - start, *tensor.shape[1:])

    def release(self, name: str, start: int, stop: int) -> None:
        """Let the system drop the pages of rows `start` to `stop`, exclusive. They will not be read again."""
        tensor = self._find(name)
        row_bytes = tensor.nbytes // tensor.shape[0]
        first = -(-(tensor.start + start * row_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (tensor.start + stop * row_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and tensor.file in self._maps:
            self._maps[tensor.file].madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        """Unmap the files."""
        for mapped in self._maps.values():
            with suppress(BufferError):  # a view is still in use; the file is unmapped when it is deleted
                mapped.close()
        self._maps.clear()

    def _find(self, name: str) -> StoredTensor:
        try:
            return self.stored[name]
        except KeyError:
            raise CheckpointError(f"{self._path} has no tensor {name}") from None


def _shards(folder: Path) -> dict[Path, set[str] | None]:
    """Return the weight files in order, each with the tensor names that the index lists for it (None without index)."""
    index_file = folder / WEIGHTS_INDEX_NAME
    if not index_file.exists():
        single = folder / SINGLE_WEIGHTS_NAME
        if not is_regular_file(single):
            raise CheckpointError(
                f"{folder} has neither {SINGLE_WEIGHTS_NAME} nor {WEIGHTS_INDEX_NAME}; is it a checkpoint folder?"
            )
        return {single: None}
    weight_map = read_json_object(index_file, CheckpointError, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_file} has no weight_map; download it again")
    shards: dict[Path, set[str] | None] = {}
    listed: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not _is_plain_name(file):
            raise CheckpointError(
                f"{index_file} places tensor {short_name(name)} in {short_repr(file)}, which is not a plain file name; "
                "files outside the folder are not read"
            )
        listed.setdefault(file, set()).add(name)
    for file in sorted(listed):
        if not is_regular_file(folder / file):
            raise CheckpointError(f"{folder / file} is missing, but {WEIGHTS_INDEX_NAME} lists it; download it")
        shards[folder / file] = listed[file]
    return shards


def _is_plain_name(file: object) -> bool:
    """Return whether `file` is a file name without path components on every operating system."""
    if not isinstance(file, str) or not file.isprintable() or len(file.encode(errors="replace")) > MAX_NAME_BYTES:
        return False
    return file not in ("", ".", "..") and not set(file) & set("/\\")


def _check_listing(file: Path, listed: set[str] | None, found: Iterable[str]) -> None:
    if listed is None:
        return
    missing, extra = sorted(listed - set(found)), sorted(set(found) - listed)
    if missing:
        raise CheckpointError(
            f"{file} does not contain {describe_tensors(missing)}, listed in {WEIGHTS_INDEX_NAME}; download both again"
        )
    if extra:
        raise CheckpointError(
            f"{file} contains {describe_tensors(extra)}, not listed in {WEIGHTS_INDEX_NAME}; download both again"
        )
