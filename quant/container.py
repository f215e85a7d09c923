"""The model folder: manifest.json, weights.bin, and copies of config, tokenizer and template files.

weights.bin holds every part of every tensor (layouts: `quant.formats`), each at a multiple of 64 bytes, in manifest
order; it is mapped, never read as a whole. manifest.json is

    {"format": "qwchat-model", "format_version": 1,
     "producer": {"name", "version"},
     "source": {"name", "fingerprint", "bytes"},
     "settings": {"preset", "group_size"},
     "weights": {"file": "weights.bin", "bytes"},
     "tensors": {NAME: {"format", "shape", "group_size", "sha256", "relative_error",
                        "parts": {PART: {"dtype", "shape", "offset", "nbytes"}}}},
     "files": {FILE: {"bytes", "sha256"}}}

A tensor's sha256 is the SHA-256 of the concatenated SHA-256 digests of its parts, in manifest order, so that parts can
be hashed while they are written side by side. relative_error is sqrt(sum of squared errors / sum of squares).

A model folder may come from anywhere: `open_model` checks every size, offset, dtype and shape against the layouts and
config.json before a single weight is looked at. It reads no weights; `quant.verification` does.
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

from quant.config import ModelConfig
from quant.errors import ContainerError, FormatError
from quant.families import expected_tensors, parameter_count, read_config
from quant.files import COPIED_FILES, is_regular, open_regular, parse_json_object, read_bounded
from quant.formats import PackedTensor, layout
from quant.values import shown

MANIFEST_NAME = "manifest.json"
WEIGHTS_NAME = "weights.bin"
FORMAT_NAME = "qwchat-model"
FORMAT_VERSION = 1
ALIGNMENT = 64
MAX_MANIFEST_BYTES = 16 << 20
_HASH_PIECE = 4 << 20
_POPULATE_READ = 22  # MADV_POPULATE_READ, Linux 5.14 and later
_POPULATE_PIECE = 16 << 20  # in between, the process may change its address space again


class ModelFolder:
    """An opened model folder. Parts of tensors are read-only views of the mapped weights."""

    def __init__(self, path: Path, config: ModelConfig, manifest: dict[str, Any], fingerprint: str) -> None:
        self.path = path
        self.config = config
        self.manifest = manifest
        self.fingerprint = fingerprint
        """First 16 hex digits of the manifest's SHA-256; the manifest holds the checksum of every tensor."""
        self._weights: NDArray[np.uint8] | None = None
        self._status: os.stat_result | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in file order."""
        return tuple(self.manifest["tensors"])

    @property
    def total_bytes(self) -> int:
        """Size of weights.bin."""
        return int(self.manifest["weights"]["bytes"])

    @property
    def bits_per_weight(self) -> float:
        """Bits of weights.bin per parameter of the whole model, a tied head counted once."""
        return 8 * self.total_bytes / parameter_count(self.config)

    @property
    def preset(self) -> str:
        """The preset that the model was made with."""
        return str(self.manifest["settings"]["preset"])

    @property
    def source_fingerprint(self) -> str:
        """Fingerprint of the checkpoint that the model was made from."""
        return str(self.manifest["source"]["fingerprint"])

    @property
    def weights_status(self) -> os.stat_result:
        """Status of weights.bin, of the very file that is mapped. Raises ContainerError if it cannot be mapped."""
        self._mapped()
        assert self._status is not None
        return self._status

    def tensor(self, name: str) -> PackedTensor:
        """Tensor `name` as views of the mapped file. Raises ContainerError if there is none."""
        entry = self._entry(name)
        weights = self._mapped()
        parts = {}
        for part_name, part in entry["parts"].items():
            piece = weights[part["offset"] : part["offset"] + part["nbytes"]]
            parts[part_name] = piece.view(np.dtype(part["dtype"])).reshape(part["shape"])
        return PackedTensor(entry["format"], tuple(entry["shape"]), entry["group_size"], parts)

    def prefetch(self) -> threading.Thread:
        """Maps the pages of weights.bin in the background, as far as the system can; returns the thread that does it.

        Otherwise each page is a fault on the way of the first token; all together they cost more than the token.
        Raises ContainerError if the file cannot be mapped.
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
                raise ContainerError(f"{self.path / WEIGHTS_NAME} cannot be mapped: {exc.strerror}") from exc
            if self._weights.size != self.total_bytes:
                raise ContainerError(f"{self.path / WEIGHTS_NAME} changed its size; convert the model again")
        return self._weights


def _populate(weights: NDArray[np.uint8]) -> None:
    if not sys.platform.startswith("linux"):
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    start = int(weights.ctypes.data)
    for offset in range(0, weights.size, _POPULATE_PIECE):
        # Advice: where it is not taken, pages come when they are first read.
        if madvise(start + offset, min(_POPULATE_PIECE, weights.size - offset), _POPULATE_READ) != 0:
            return


def is_model_folder(path: str | Path) -> bool:
    """Whether `path` looks like a finished model folder (it has a manifest). Checks nothing else."""
    return is_regular(Path(path) / MANIFEST_NAME)


def open_model(path: str | Path) -> ModelFolder:
    """Open a model folder, checking the manifest against config.json, the layouts and the size of weights.bin.

    Reads no weights. Raises ContainerError for anything missing, half-written, malformed or contradictory.
    """
    path = Path(path)
    data = _read_manifest(path)
    manifest = parse_json_object(data, str(path / MANIFEST_NAME), ContainerError)
    if manifest.get("format") != FORMAT_NAME:
        raise ContainerError(f"{path / MANIFEST_NAME} is not the manifest of a {FORMAT_NAME} folder")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ContainerError(
            f"{path} has format version {shown(manifest.get('format_version'))}, this program reads "
            f"{FORMAT_VERSION}; update the program or convert the model again"
        )
    config = read_config(path, ContainerError)
    _check_manifest(path, manifest, config)
    return ModelFolder(path, config, manifest, hashlib.sha256(data).hexdigest()[:16])


def align(offset: int) -> int:
    """The next multiple of 64."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def hash_bytes(data: NDArray[np.uint8]) -> bytes:
    """SHA-256 digest of one part, fed in pieces so that mapped pages come and go."""
    digest = hashlib.sha256()
    for start in range(0, data.size, _HASH_PIECE):
        digest.update(data[start : start + _HASH_PIECE].data)
    return digest.digest()


def combine_digests(digests: list[bytes]) -> str:
    """A tensor's checksum (hex) from the digests of its parts."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _read_manifest(path: Path) -> bytes:
    if not path.is_dir():
        raise ContainerError(f"{path} is not a folder; give a model folder or convert a checkpoint first")
    if not is_model_folder(path):
        raise ContainerError(f"{path} has no {MANIFEST_NAME}: no model folder, or a conversion that was cut off")
    return read_bounded(path / MANIFEST_NAME, ContainerError, MAX_MANIFEST_BYTES)


class _Checker:
    """Typed access to the manifest; every complaint names the file and the place in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, what: str) -> ContainerError:
        return ContainerError(f"{self.path / MANIFEST_NAME}: {what}; the model is damaged, convert it again")

    def mapping(self, parent: dict[str, Any], key: str, where: str) -> dict[str, Any]:
        value = parent.get(key)
        if not isinstance(value, dict):
            raise self.fail(f"{where} has no object {key!r}")
        return value

    def facts(self, manifest: dict[str, Any], key: str) -> dict[str, Any]:
        """Return the object `key`, which is shown as it is, and so holds plain values only."""
        value = self.mapping(manifest, key, "the manifest")
        for name, fact in value.items():
            count = isinstance(fact, int) and abs(fact) < 1 << 62
            if len(name) > 100 or not (fact is None or count or (isinstance(fact, str) and len(fact) <= 1000)):
                raise self.fail(f"{key} has {shown(fact)} under {shown(name)}")
        return value

    def text(self, parent: dict[str, Any], key: str, where: str) -> str:
        value = parent.get(key)
        if not isinstance(value, str) or len(value) > 1000:
            raise self.fail(f"{where} has no text {key!r}")
        return value

    def count(self, parent: dict[str, Any], key: str, where: str) -> int:
        value = parent.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 62:
            raise self.fail(f"{where} has no count {key!r}")
        return value

    def shape(self, parent: dict[str, Any], where: str) -> tuple[int, ...]:
        value = parent.get("shape")
        if not isinstance(value, list) or not 1 <= len(value) <= 4:
            raise self.fail(f"{where} has no shape")
        if any(isinstance(item, bool) or not isinstance(item, int) or not 1 <= item < 1 << 40 for item in value):
            raise self.fail(f"{where} has the shape {shown(value)}")
        return tuple(value)


def _check_manifest(path: Path, manifest: dict[str, Any], config: ModelConfig) -> None:
    check = _Checker(path)
    weights = check.mapping(manifest, "weights", "the manifest")
    total = check.count(weights, "bytes", "weights")
    check.text(check.facts(manifest, "settings"), "preset", "settings")
    source = check.facts(manifest, "source")
    check.text(source, "fingerprint", "source")
    check.text(source, "name", "source")
    check.count(source, "bytes", "source")
    for name, entry in check.mapping(manifest, "files", "the manifest").items():
        if name not in COPIED_FILES or not isinstance(entry, dict):
            raise check.fail(f"files lists {name[:80]!r}, which does not belong into a model folder")
        check.text(entry, "sha256", f"file {name}")
    tensors = check.mapping(manifest, "tensors", "the manifest")
    expected = expected_tensors(config)
    if set(tensors) != set(expected):
        odd = min(set(tensors) ^ set(expected))
        state = "unknown to" if odd in tensors else "missing, but asked for by"
        raise check.fail(f"tensor {odd[:200]} is {state} config.json")
    ranges: list[tuple[int, int, str]] = []
    for name, entry in tensors.items():
        if not isinstance(entry, dict):
            raise check.fail(f"tensor {name} is not an object")
        ranges += _check_tensor(check, name, entry, expected[name])
    _check_ranges(check, ranges, total)
    with open_regular(path / WEIGHTS_NAME, ContainerError) as file:
        actual = os.fstat(file.fileno()).st_size
    if actual != total:
        raise ContainerError(
            f"{path / WEIGHTS_NAME} has {actual:,} bytes, the manifest says {total:,}; convert the model again"
        )


def _check_tensor(
    check: _Checker, name: str, entry: dict[str, Any], expected_shape: tuple[int, ...]
) -> list[tuple[int, int, str]]:
    """Compare one manifest entry with its layout; returns the byte ranges of its parts."""
    where = f"tensor {name}"
    shape = check.shape(entry, where)
    if shape != expected_shape:
        raise check.fail(f"{where} has shape {list(shape)}, config.json asks for {list(expected_shape)}")
    check.text(entry, "sha256", where)
    error = entry.get("relative_error")
    if isinstance(error, bool) or not isinstance(error, int | float) or not 0 <= error < 1e9:
        raise check.fail(f"{where} has no number 'relative_error'")
    parts = check.mapping(entry, "parts", where)
    try:
        wanted = layout(
            check.text(entry, "format", where), shape, check.count(entry, "group_size", where), "zeros" in parts
        )
    except FormatError as exc:
        raise check.fail(f"{where}: {exc}") from exc
    if list(parts) != list(wanted):
        raise check.fail(f"{where} has the parts {shown(list(parts))}, its format has {list(wanted)}")
    ranges = []
    for part_name, (dtype, part_shape) in wanted.items():
        part = check.mapping(parts, part_name, where)
        place = f"{where}, part {part_name}"
        nbytes = dtype.itemsize * math.prod(part_shape)
        if check.text(part, "dtype", place) != dtype.name or check.shape(part, place) != part_shape:
            raise check.fail(f"{place} is not {dtype.name}{list(part_shape)}")
        if check.count(part, "nbytes", place) != nbytes:
            raise check.fail(f"{place} has {part['nbytes']:,} bytes, its shape takes {nbytes:,}")
        start = check.count(part, "offset", place)
        if start % ALIGNMENT:
            raise check.fail(f"{place} starts at {start}, which is no multiple of {ALIGNMENT}")
        ranges.append((start, start + nbytes, place))
    return ranges


def _check_ranges(check: _Checker, ranges: list[tuple[int, int, str]], total: int) -> None:
    position, previous = 0, "the start"
    for start, stop, place in sorted(ranges):
        if start < position:
            raise check.fail(f"{previous} and {place} overlap")
        position, previous = stop, place
    if position > total:
        raise check.fail(f"{previous} ends at byte {position:,} of {total:,}")
