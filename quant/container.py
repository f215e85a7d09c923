"""The model folder: manifest.json, weights.bin, and copies of config, tokenizer and template files.

weights.bin holds the parts of all tensors (layouts: `quant.formats`) in manifest order. Each part begins at a multiple
of 64 bytes. The file is memory-mapped, never read as a whole. manifest.json is

    {"format": "qwchat-model", "format_version": 1 or 2,
     "producer": {"name", "version"},
     "source": {"name", "fingerprint", "bytes"} and, if downloaded, {"repository", "revision", "licence"},
     "settings": {"preset", "group_size"} and, if tensors have other formats than the preset gives, {"choices"},
     ["quality": {"kl_mean", "kl_p999", "same_top", "tokens", "text"}],
     "weights": {"file": "weights.bin", "bytes"},
     "tensors": {NAME: {"format", "shape", "group_size", "sha256", "relative_error", ["requantised_from"],
                        "parts": {PART: {"dtype", "shape", "offset", "nbytes"}}}},
     "files": {FILE: {"bytes", "sha256"}}}

The sha256 of a tensor is the SHA-256 of the concatenated SHA-256 digests of its parts, in manifest order, so that the
parts can be hashed while they are written in parallel. relative_error is sqrt(sum of squared errors / sum of squares).
requantised_from is the quantised type of the tensor in the source, if its codes were not kept. choices is the number of
matrices whose format was chosen one by one. quality is the distance from the source that was measured before the folder
was published (`quant.quality`), if it was.

The version is 2 if a tensor has a format that came with it (`Format.container_version`), otherwise 1, so that older
programs open what they can run.

Model folders are untrusted: `open_model` checks every size, offset, dtype and shape against the layouts and config.json
before any weight is used. It does not read weights.bin; `quant.verification` checks its content.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import ContainerError, FormatError
from quant.families import expected_tensors, parameter_count, read_config
from quant.formats import PackedTensor, layout
from quant.json_fields import JsonFields, short_repr
from quant.model_config import ModelConfig
from quant.quality import Quality, read_quality
from quant.safe_files import COPIED_FILES, is_regular_file, open_regular_file, parse_json_object, read_bounded

MANIFEST_NAME = "manifest.json"
WEIGHTS_NAME = "weights.bin"
FORMAT_NAME = "qwchat-model"
FORMAT_VERSION = 2
"""Largest version that this program reads."""
ALIGNMENT = 64
MAX_MANIFEST_BYTES = 16 << 20
_HASH_PIECE = 4 << 20
_MAX_COUNT = (1 << 62) - 1  # of bytes, and of every other integer of a manifest
_MAX_AXES, _MAX_SIZE = 4, (1 << 40) - 1  # of a shape
_POPULATE_READ = 22  # MADV_POPULATE_READ, Linux 5.14 and later
_POPULATE_PIECE = 16 << 20  # bytes per call: other threads wait for each call before they can map memory


class ModelFolder:
    """An opened model folder.

    The parts of its tensors are read-only views of the memory-mapped weights.

    Attributes:
        path: the folder.
        config: hyperparameters from config.json.
        manifest: content of manifest.json, checked.
        fingerprint: first 16 hex digits of the SHA-256 of manifest.json, which holds the checksum of every tensor.
    """

    def __init__(self, path: Path, config: ModelConfig, manifest: dict[str, Any], fingerprint: str) -> None:
        self.path = path
        self.config = config
        self.manifest = manifest
        self.fingerprint = fingerprint
        self._weights: NDArray[np.uint8] | None = None
        self._status: os.stat_result | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in file order."""
        return tuple(self.manifest["tensors"])

    @property
    def total_bytes(self) -> int:
        """Size of weights.bin in bytes."""
        return int(self.manifest["weights"]["bytes"])

    @property
    def bits_per_weight(self) -> float:
        """Bits of weights.bin per parameter of the model; a tied head counts once."""
        return 8 * self.total_bytes / parameter_count(self.config)

    @property
    def preset(self) -> str:
        """Name of the preset that the model was converted with."""
        return str(self.manifest["settings"]["preset"])

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the formats of the tensors, each once."""
        return tuple(dict.fromkeys(str(entry["format"]) for entry in self.manifest["tensors"].values()))

    @property
    def source_fingerprint(self) -> str:
        """Fingerprint of the source checkpoint."""
        return str(self.manifest["source"]["fingerprint"])

    @property
    def quality(self) -> Quality | None:
        """Distance from the source; None if the conversion did not measure it."""
        return read_quality(JsonFields(self.manifest, str(self.path), ContainerError))

    @property
    def weights_status(self) -> os.stat_result:
        """File status of the mapped weights.bin. Raises ContainerError if it cannot be mapped."""
        self._mapped()
        assert self._status is not None
        return self._status

    def tensor(self, name: str) -> PackedTensor:
        """Return tensor `name` as views of the mapped file. Raises ContainerError if the model does not have it."""
        entry = self._entry(name)
        weights = self._mapped()
        parts = {}
        for part_name, part in entry["parts"].items():
            piece = weights[part["offset"] : part["offset"] + part["nbytes"]]
            parts[part_name] = piece.view(np.dtype(part["dtype"])).reshape(part["shape"])
        return PackedTensor(entry["format"], tuple(entry["shape"]), entry["group_size"], parts)

    def prefetch(self) -> threading.Thread:
        """Map the pages of weights.bin in a background thread, where the system supports it. Return the thread.

        Without this, each page causes a page fault during the first token. Together they take longer than the token.

        Raises:
            ContainerError: weights.bin cannot be mapped.
        """
        thread = threading.Thread(target=_populate, args=(self._mapped(),), name="weights", daemon=True)
        thread.start()
        return thread

    def _entry(self, name: str) -> dict[str, Any]:
        try:
            entry: dict[str, Any] = self.manifest["tensors"][name]
        except KeyError:
            raise ContainerError(f"{self.path} has no tensor {name}") from None
        return entry

    def _mapped(self) -> NDArray[np.uint8]:
        if self._weights is None:
            try:
                with (self.path / WEIGHTS_NAME).open("rb") as file:
                    self._weights = np.memmap(file, dtype=np.uint8, mode="r")
                    self._status = os.fstat(file.fileno())
            except OSError as exc:
                raise ContainerError(
                    f"{self.path / WEIGHTS_NAME} cannot be memory-mapped: {exc.strerror}; check its permissions"
                ) from exc
            if self._weights.size != self.total_bytes:
                raise ContainerError(f"{self.path / WEIGHTS_NAME} has changed its size; convert the model again")
        return self._weights


def _populate(weights: NDArray[np.uint8]) -> None:
    if not sys.platform.startswith("linux"):
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    start = int(weights.ctypes.data)
    for offset in range(0, weights.size, _POPULATE_PIECE):
        # The call is only a hint. If it fails, pages are mapped when they are first read.
        if madvise(start + offset, min(_POPULATE_PIECE, weights.size - offset), _POPULATE_READ) != 0:
            return


def is_model_folder(path: str | Path) -> bool:
    """Return whether `path` looks like a complete model folder: it has a manifest. Check nothing else."""
    return is_regular_file(Path(path) / MANIFEST_NAME)


def open_model(path: str | Path) -> ModelFolder:
    """Open a model folder. Check the manifest against config.json, the layouts and the size of weights.bin.

    The weights are not read.

    Raises:
        ContainerError: the folder is missing, incomplete, malformed or contradicts itself.
    """
    path = Path(path)
    data = _read_manifest(path)
    manifest = parse_json_object(data, str(path / MANIFEST_NAME), ContainerError)
    if manifest.get("format") != FORMAT_NAME:
        raise ContainerError(
            f"{path / MANIFEST_NAME} is not the manifest of a {FORMAT_NAME} folder; give another folder"
        )
    version = manifest.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ContainerError(
            f"{path} has format version {short_repr(version)}, but this program reads 1 to {FORMAT_VERSION}; "
            "update the program or convert the model again"
        )
    config = read_config(path, ContainerError)
    _check_manifest(path, manifest, config)
    return ModelFolder(path, config, manifest, hashlib.sha256(data).hexdigest()[:16])


def align(offset: int) -> int:
    """Return the smallest multiple of 64 that is at least `offset`."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def hash_bytes(data: NDArray[np.uint8]) -> bytes:
    """Return the SHA-256 digest of one part, read in pieces so that few mapped pages are in memory at a time."""
    digest = hashlib.sha256()
    for start in range(0, data.size, _HASH_PIECE):
        digest.update(data[start : start + _HASH_PIECE].data)
    return digest.digest()


def combine_digests(digests: list[bytes]) -> str:
    """Return the checksum (hex) of a tensor from the SHA-256 digests of its parts."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _read_manifest(path: Path) -> bytes:
    if not path.is_dir():
        raise ContainerError(f"{path} is not a folder; give a model folder or convert a checkpoint first")
    if not is_model_folder(path):
        raise ContainerError(f"{path} has no {MANIFEST_NAME}; give a model folder, or finish its conversion")
    return read_bounded(path / MANIFEST_NAME, ContainerError, MAX_MANIFEST_BYTES)


def _read_plain_values(fields: JsonFields, key: str) -> JsonFields:
    """Return the object `key` after checking that it holds only short plain values, since other code shows them."""
    for name, value in (inner := fields.inner(key)).values.items():
        count = isinstance(value, int) and abs(value) <= _MAX_COUNT
        if len(name) > 100 or not (value is None or count or (isinstance(value, str) and len(value) <= 1000)):
            raise fields.invalid(f"{key} has the invalid value {short_repr(value)} for {short_repr(name)}")
    return inner


def _check_manifest(path: Path, manifest: dict[str, Any], config: ModelConfig) -> None:
    fields = JsonFields(manifest, str(path / MANIFEST_NAME), ContainerError, "; the model is damaged, convert it again")
    total = fields.inner("weights").integer("bytes", 0, _MAX_COUNT)
    _read_plain_values(fields, "settings").required_text("preset")
    source = _read_plain_values(fields, "source")
    source.required_text("fingerprint")
    source.required_text("name")
    source.integer("bytes", 0, _MAX_COUNT)
    read_quality(fields)
    files = fields.inner("files", "")
    for name in files.values:
        if name not in COPIED_FILES:
            raise fields.invalid(f"files lists {name[:80]!r}, which is not a file of a model folder")
        files.inner(name, f"file {name}").required_text("sha256")
    tensors = fields.inner("tensors", "")
    expected = expected_tensors(config)
    if set(tensors.values) != set(expected):
        name = min(set(tensors.values) ^ set(expected))
        state = "not part of a model with this" if name in tensors.values else "missing, but required by"
        raise fields.invalid(f"tensor {name[:200]} is {state} config.json")
    ranges: list[tuple[int, int, str]] = []
    for name, shape in expected.items():
        ranges += _check_tensor(tensors.inner(name, f"tensor {name}"), name, shape)
    _check_ranges(fields, ranges, total)
    with open_regular_file(path / WEIGHTS_NAME, ContainerError) as file:
        actual = os.fstat(file.fileno()).st_size
    if actual != total:
        raise ContainerError(
            f"{path / WEIGHTS_NAME} has {actual:,} bytes, but the manifest says {total:,}; convert the model again"
        )


def _check_tensor(entry: JsonFields, tensor: str, expected_shape: tuple[int, ...]) -> list[tuple[int, int, str]]:
    """Compare one manifest entry with its layout. Return (start, stop, description) of each of its parts."""
    shape = entry.sizes("shape", _MAX_AXES, _MAX_SIZE)
    if shape != expected_shape:
        raise entry.invalid(f"the shape is {list(shape)}, but config.json requires {list(expected_shape)}")
    entry.required_text("sha256")
    entry.number("relative_error", 0, 1e9)
    entry.text("requantised_from", None)
    parts = entry.inner("parts", "")
    try:
        wanted = layout(
            entry.required_text("format"), shape, entry.integer("group_size", 0, _MAX_COUNT), "zeros" in parts.values
        )
    except FormatError as exc:
        raise entry.invalid(str(exc)) from exc
    if list(parts.values) != list(wanted):
        raise entry.invalid(f"the parts are {short_repr(list(parts.values))}, but its format has {list(wanted)}")
    ranges = []
    for name, (dtype, part_shape) in wanted.items():
        part = parts.inner(name, f"part {name}")
        nbytes = dtype.itemsize * math.prod(part_shape)
        if part.required_text("dtype") != dtype.name or part.sizes("shape", _MAX_AXES, _MAX_SIZE) != part_shape:
            raise part.invalid(f"dtype and shape are not {dtype.name}{list(part_shape)}")
        if part.integer("nbytes", 0, _MAX_COUNT) != nbytes:
            raise part.invalid(f"it has {part.values['nbytes']:,} bytes, but its shape needs {nbytes:,}")
        start = part.integer("offset", 0, _MAX_COUNT)
        if start % ALIGNMENT:
            raise part.invalid(f"its offset {start} is not a multiple of {ALIGNMENT}")
        ranges.append((start, start + nbytes, f"tensor {tensor}, part {name}"))
    return ranges


def _check_ranges(fields: JsonFields, ranges: list[tuple[int, int, str]], total: int) -> None:
    position, previous = 0, "the start"
    for start, stop, place in sorted(ranges):
        if start < position:
            raise fields.invalid(f"{previous} and {place} overlap")
        position, previous = stop, place
    if position > total:
        raise fields.invalid(f"{previous} ends at byte {position:,}, but {WEIGHTS_NAME} has {total:,}")
