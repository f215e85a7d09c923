"""Write a model folder so that an unfinished one is never mistaken for a complete one.

Everything is first written to `.NAME.partial` beside the destination: weights.bin at its full size, and journal.jsonl.
The first line of the journal identifies the conversion; each finished tensor adds one line. The manifest is written
last; then the folder is synced and renamed. After a crash, `resume` checks every journalled tensor against its
checksum, so that data lost in a power cut is converted again. A lock on `.NAME.lock` keeps other conversions out.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.container import (
    FORMAT_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    WEIGHTS_NAME,
    align,
    combine_digests,
    hash_bytes,
)
from quant.destination import (
    StagedFolder,
    allocated_bytes,
    append_record,
    open_reserved,
    translate_os_errors,
    write_at,
    write_synced,
)
from quant.errors import ArgumentError, ContainerError, DiskFullError
from quant.formats import PackedTensor, find_format, layout
from quant.quality import QUALITY_ENTRY, Quality
from quant.safe_files import read_bounded, read_json_object
from quant.wording import Argument, ArgumentMessage, SuggestedArgument

JOURNAL_NAME = "journal.jsonl"
SYNC_BYTES = 64 << 20


class ModelWriter:
    """Writer of one model folder. In a `with` block: `begin`, `write` and `finish` per tensor, `complete`, `publish`.

    The block holds the lock of the destination. Leaving it early keeps the partial folder for a later resume.

    Args:
        destination: model folder to write.
        tensors: (name, format, shape, group_size, zeros) in file order. They determine the offset of every part.
        header: entries of the manifest besides tensors and files: "producer", "source", "settings".
        files: content of the small files to copy, by name.
        requantised: names of tensors that the source stores in a quantised type which is not kept, with that type.

    Attributes:
        destination: model folder to write.
        partial: folder that is written until `publish` renames it.
        finished: journalled tensors: name -> {"sha256", "relative_error"}.
        total_bytes: size of weights.bin.
    """

    def __init__(
        self,
        destination: Path,
        tensors: Sequence[tuple[str, str, tuple[int, ...], int, bool]],
        header: Mapping[str, Any],
        files: Mapping[str, bytes],
        requantised: Mapping[str, str] | None = None,
    ) -> None:
        self.destination = destination
        self._folder = StagedFolder(destination)
        self.partial = self._folder.partial
        self.finished: dict[str, dict[str, Any]] = {}
        self._header = dict(header)
        self._files = dict(files)
        self._entries, self.total_bytes = _assign_offsets(tensors)
        for name, dtype in (requantised or {}).items():
            self._entries[name]["requantised_from"] = dtype
        self._hashers: dict[str, Any] = {}
        self._unsynced = 0
        self._weights = -1
        self._journal = -1

    def __enter__(self) -> ModelWriter:
        self._folder.lock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in (self._weights, self._journal):
            if descriptor >= 0:
                os.close(descriptor)
        self._folder.unlock()

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of everything that the result depends on: header, files, tensors and offsets."""
        manifest = json.dumps(self._manifest(), sort_keys=True)
        return hashlib.sha256(manifest.encode()).hexdigest()

    def is_published(self) -> bool:
        """Return whether the destination already holds the result of this conversion."""
        return self._matches(self.destination / MANIFEST_NAME)

    def check_space(self) -> None:
        """Raise DiskFullError unless the file system has enough free space for the rest of the model."""
        needed = self.total_bytes + sum(map(len, self._files.values()))
        self._folder.check_space(needed, allocated_bytes(self.partial / WEIGHTS_NAME), "the model")

    def begin(self, resume: bool) -> list[str]:
        """Open or create the partial folder. Return notices for the user.

        Args:
            resume: keep the tensors that an earlier attempt finished, as far as they are intact.

        Raises:
            ArgumentError: the partial folder belongs to another conversion.
            DiskFullError: the disk does not have enough free space.
        """
        notices: list[str] = []
        if self.partial.exists() and resume:
            self._read_journal()
            notices.append(f"resuming: {len(self.finished)} of {len(self._entries)} tensors are done")
        elif self.partial.exists():
            shutil.rmtree(self.partial)
            suggestion = SuggestedArgument("resume", True)
            notices.append(
                ArgumentMessage("an unfinished conversion was discarded; ", suggestion, " would have continued it")
            )
        elif resume:
            notices.append("there is nothing to resume; starting from the beginning")
        self.check_space()
        is_new = not self.partial.exists()
        try:
            with translate_os_errors(self.partial):
                (self.partial / MANIFEST_NAME).unlink(missing_ok=True)  # from here on the folder is incomplete
                self._open_files()
        except DiskFullError:
            if is_new:
                shutil.rmtree(self.partial, ignore_errors=True)
            raise
        return notices

    def write(self, name: str, parts: Mapping[str, NDArray[Any]], first_tile: int) -> None:
        """Write tiles of a matrix, or a whole vector. The tiles of a tensor must be written in order.

        Args:
            name: name of the tensor.
            parts: arrays of its parts, by name.
            first_tile: index of the first tile.
        """
        entry = self._entries[name]
        with translate_os_errors(self.destination):
            for part_name, part in parts.items():
                place = entry["parts"][part_name]
                data = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
                tile_bytes = place["nbytes"] // place["shape"][0]
                write_at(self._weights, data, place["offset"] + first_tile * tile_bytes)
                self._hashers.setdefault(part_name, hashlib.sha256()).update(data)
                self._unsynced += len(data)

    def finish(self, name: str, relative_error: float) -> None:
        """Add tensor `name` to the journal as finished."""
        digests = [self._hashers[part].digest() for part in self._entries[name]["parts"]]
        self._hashers.clear()
        figures = {"sha256": combine_digests(digests), "relative_error": relative_error}
        with translate_os_errors(self.destination):
            if self._unsynced >= SYNC_BYTES:
                os.fsync(self._weights)
                self._unsynced = 0
            append_record(self._journal, {"name": name, **figures})
        self.finished[name] = figures

    def read(self, name: str) -> PackedTensor:
        """Return tensor `name`, which is finished; its parts lie in the file."""
        entry, weights = self._entries[name], np.memmap(self.partial / WEIGHTS_NAME, np.uint8, "r")
        parts = {
            part: weights[place["offset"] : place["offset"] + place["nbytes"]]
            .view(place["dtype"])
            .reshape(place["shape"])
            for part, place in entry["parts"].items()
        }
        return PackedTensor(entry["format"], tuple(entry["shape"]), entry["group_size"], parts)

    def complete(self) -> None:
        """Write the small files and the manifest, after which the partial folder opens as a model."""
        with translate_os_errors(self.destination):
            os.fsync(self._weights)
            for name, data in self._files.items():
                write_synced(self.partial / name, data)
            self._write_manifest(None)

    def publish(self, force: bool, quality: Quality | None = None) -> None:
        """Rename the completed folder to its final name, with an entry for its quality if that was measured."""
        with translate_os_errors(self.destination):
            if quality is not None:
                self._write_manifest(quality)
            (self.partial / JOURNAL_NAME).unlink()
            self._folder.publish(force)

    def _write_manifest(self, quality: Quality | None) -> None:
        manifest = self._manifest()
        manifest["tensors"] = {name: {**entry, **self.finished[name]} for name, entry in manifest["tensors"].items()}
        if quality is not None:
            manifest[QUALITY_ENTRY] = asdict(quality)
        write_synced(self.partial / MANIFEST_NAME, json.dumps(manifest, indent=1).encode() + b"\n")

    def discard(self) -> None:
        """Delete the partial folder."""
        self._folder.discard()

    def _manifest(self) -> dict[str, Any]:
        files = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in self._files.items()
        }
        return {
            "format": FORMAT_NAME,
            "format_version": max(find_format(entry["format"]).container_version for entry in self._entries.values()),
            **self._header,
            "weights": {"file": WEIGHTS_NAME, "bytes": self.total_bytes},
            "tensors": self._entries,
            "files": files,
        }

    def _open_files(self) -> None:
        self.partial.mkdir(exist_ok=True)
        self._weights = open_reserved(self.partial / WEIGHTS_NAME, self.total_bytes)
        self._journal = os.open(self.partial / JOURNAL_NAME, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        append_record(self._journal, {"identity": self.identity})
        for name, figures in self.finished.items():
            append_record(self._journal, {"name": name, **figures})

    def _read_journal(self) -> None:
        """Add the journalled tensors whose bytes match their checksums to `finished`."""
        identity, records = self._parse_journal()
        if identity is not None and identity != self.identity:
            raise ArgumentError(
                ArgumentMessage(
                    f"the unfinished conversion in {self.partial} has another source or other settings; run without ",
                    Argument("resume"),
                    " to start from the beginning",
                )
            )
        path = self.partial / WEIGHTS_NAME
        if not records or not path.is_file() or path.stat().st_size != self.total_bytes:
            return
        weights = np.memmap(path, dtype=np.uint8, mode="r")
        for name, figures in records.items():
            digests = [
                hash_bytes(weights[part["offset"] : part["offset"] + part["nbytes"]])
                for part in self._entries[name]["parts"].values()
            ]
            if combine_digests(digests) == figures["sha256"]:
                self.finished[name] = figures

    def _parse_journal(self) -> tuple[str | None, dict[str, dict[str, Any]]]:
        """Return identity and finished tensors of the partial folder, or (None, {}) without a complete first line.

        If a conversion was interrupted just before its last rename, the folder has a manifest and no journal.
        """
        try:
            journal = read_bounded(self.partial / JOURNAL_NAME, ContainerError, MAX_MANIFEST_BYTES)
            lines = journal.split(b"\n")[:-1]  # an incomplete last line has no newline
            first, *rest = [json.loads(line) for line in lines]
            return first["identity"], {
                record["name"]: {"sha256": record["sha256"], "relative_error": record["relative_error"]}
                for record in rest
            }
        except (ContainerError, ValueError, LookupError, TypeError, RecursionError):
            pass
        if not self._matches(self.partial / MANIFEST_NAME):
            return None, {}
        tensors = read_json_object(self.partial / MANIFEST_NAME, ContainerError, MAX_MANIFEST_BYTES)["tensors"]
        return self.identity, {
            name: {"sha256": entry["sha256"], "relative_error": entry["relative_error"]}
            for name, entry in tensors.items()
        }

    def _matches(self, manifest: Path) -> bool:
        """Return whether a manifest is the one of this conversion, except for checksums, errors and quality."""
        try:
            found = read_json_object(manifest, ContainerError, MAX_MANIFEST_BYTES)
            found.pop(QUALITY_ENTRY, None)
            for entry in found["tensors"].values():
                del entry["sha256"], entry["relative_error"]
        except (ContainerError, LookupError, TypeError, AttributeError):
            return False
        return bool(found == self._manifest())


def weights_size(tensors: Sequence[tuple[str, str, tuple[int, ...], int, bool]]) -> int:
    """Return the exact size of weights.bin in bytes. `tensors` are as in `ModelWriter`."""
    return _assign_offsets(tensors)[1]


def _assign_offsets(
    tensors: Sequence[tuple[str, str, tuple[int, ...], int, bool]],
) -> tuple[dict[str, dict[str, Any]], int]:
    """Assign an offset to every part. Return the manifest entries without checksums and the size of weights.bin."""
    entries: dict[str, dict[str, Any]] = {}
    position = 0
    for name, format_name, shape, group_size, zeros in tensors:
        parts = {}
        for part_name, (dtype, part_shape) in layout(format_name, shape, group_size, zeros).items():
            nbytes = dtype.itemsize * int(np.prod(part_shape, dtype=np.int64))
            parts[part_name] = {
                "dtype": dtype.name,
                "shape": list(part_shape),
                "offset": position,
                "nbytes": nbytes,
            }
            position = align(position + nbytes)
        entries[name] = {"format": format_name, "shape": list(shape), "group_size": group_size, "parts": parts}
    return entries, position
