"""Write an export so that an unfinished one is never mistaken for a complete one.

Everything is first written to `.NAME.partial` beside the destination, and each finished weight file is recorded in
`.NAME.journal` with its SHA-256. After a crash, `resume` keeps the recorded files that match their checksums. Small
files, the checksums and qwchat-export.json are written last; then the folder is synced and renamed.

SHA256SUMS lists every other file, in the form that `sha256sum --check` reads. qwchat-export.json is

    {"format": "qwchat-export", "identity", "kind", "model": {"name", "fingerprint"}, "options": {...},
     "tensors": {NAME: {"type", "relative_error"}}}
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.container import MAX_MANIFEST_BYTES
from quant.destination import (
    StagedFolder,
    allocated_bytes,
    append_record,
    open_reserved,
    translate_os_errors,
    write_at,
    write_synced,
)
from quant.errors import ArgumentError, ContainerError
from quant.exporters.export_plan import ExportPlan, WeightFile
from quant.safe_files import is_regular_file, open_regular_file, read_bounded, read_json_object
from quant.wording import Argument, ArgumentMessage, SuggestedArgument

CHECKSUMS_NAME = "SHA256SUMS"
EXPORT_NAME = "qwchat-export.json"
_FORMAT = "qwchat-export"
_HASH_PIECE = 1 << 20


@dataclass(frozen=True)
class FinishedFile:
    """A weight file that is complete: its SHA-256 (hex), and the relative error of each tensor."""

    sha256: str
    errors: Mapping[str, float]


class ExportWriter:
    """Writer of one export. In a `with` block: `begin`, then `open`, `write` and `finish` per file, then `publish`.

    The block holds the lock of the destination. Leaving it early keeps the partial folder for a later resume.

    Args:
        destination: folder to write.
        plan: the files.
        header: entries of qwchat-export.json that identify the model and the options.

    Attributes:
        destination: folder to write.
        finished: complete weight files, by name.
    """

    def __init__(self, destination: Path, plan: ExportPlan, header: Mapping[str, Any]) -> None:
        self.destination = destination
        self.finished: dict[str, FinishedFile] = {}
        self._plan = plan
        self._header = dict(header)
        self._folder = StagedFolder(destination)
        self._journal_path = destination.parent / f".{destination.name}.journal"
        self._journal = self._weights = -1
        self._positions: dict[str, int] = {}

    def __enter__(self) -> ExportWriter:
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
        """SHA-256 (hex) of everything that the result depends on: header, layout of the weights, small files."""
        digest = hashlib.sha256(json.dumps(self._header, sort_keys=True).encode())
        for file in self._plan.weights:
            digest.update(hashlib.sha256(file.header).digest() + f"{file.name}\0{file.nbytes}\0".encode())
            for tensor in file.tensors:
                digest.update(f"{tensor.name}\0{tensor.target}\0".encode())
        for name, data in sorted(self._plan.files.items()):
            digest.update(hashlib.sha256(data).digest() + f"{name}\0".encode())
        return digest.hexdigest()

    def is_published(self) -> bool:
        """Return whether the destination already holds the result of this export. If so, take over its figures."""
        found = _read_export(self.destination)
        if found is None or found.get("identity") != self.identity:
            return False
        sums = _read_checksums(self.destination)
        for file in self._plan.weights:
            errors = {tensor.name: found["tensors"][tensor.name]["relative_error"] for tensor in file.tensors}
            self.finished[file.name] = FinishedFile(sums[file.name], errors)
        self._journal_path.unlink(missing_ok=True)  # left by a process that was killed right after its last rename
        return True

    @property
    def errors(self) -> dict[str, float]:
        """Relative error of each tensor of the finished files."""
        return {name: error for file in self.finished.values() for name, error in file.errors.items()}

    @property
    def checksums(self) -> dict[str, str]:
        """SHA-256 (hex) of each finished file."""
        return {name: file.sha256 for name, file in self.finished.items()}

    def begin(self, resume: bool) -> list[str]:
        """Open or create the partial folder and the journal. Return notices for the user.

        Args:
            resume: keep the files that an earlier attempt finished, as far as they are intact.

        Raises:
            ArgumentError: the partial folder belongs to another export.
            DiskFullError: the disk does not have enough free space.
        """
        notices: list[str] = []
        partial = self._folder.partial
        if partial.exists() and resume:
            self._read_journal()
            notices.append(f"resuming: {len(self.finished)} of {len(self._plan.weights)} weight files are done")
        elif partial.exists():
            shutil.rmtree(partial)
            suggestion = SuggestedArgument("resume", True)
            notices.append(
                ArgumentMessage("an unfinished export was discarded; ", suggestion, " would have continued it")
            )
        elif resume:
            notices.append("there is nothing to resume; starting from the beginning")
        needed = sum(file.nbytes for file in self._plan.weights) + sum(map(len, self._plan.files.values()))
        written = sum(allocated_bytes(partial / file.name) for file in self._plan.weights)
        self._folder.check_space(needed, written, "the export")
        with translate_os_errors(partial):
            partial.mkdir(exist_ok=True)
            self._journal = os.open(self._journal_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            append_record(self._journal, {"identity": self.identity})
            for name, file in self.finished.items():
                append_record(self._journal, _as_record(name, file))
        return notices

    def open(self, file: WeightFile) -> None:
        """Create a weight file with its header and the entries that do not depend on weights."""
        path = self._folder.partial / file.name
        with translate_os_errors(path):
            path.unlink(missing_ok=True)  # so that bytes that no entry covers are zero
            self._weights = open_reserved(path, file.nbytes)
            write_at(self._weights, memoryview(file.header), 0)
            self._positions = dict(file.offsets)
            for tensor in file.tensors:
                for entry in tensor.entries:
                    if entry.constant is not None:
                        write_at(self._weights, memoryview(entry.constant), file.offsets[entry.name])

    def write(self, entry: str, data: NDArray[Any]) -> None:
        """Append the next rows to an entry of the open file."""
        view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        with translate_os_errors(self.destination):
            write_at(self._weights, view, self._positions[entry])
        self._positions[entry] += len(view)

    def finish(self, file: WeightFile, errors: Mapping[str, float]) -> None:
        """Sync the open file and record it in the journal."""
        with translate_os_errors(self.destination):
            os.fsync(self._weights)
            os.close(self._weights)
            self._weights = -1
            finished = FinishedFile(_hash_file(self._folder.partial / file.name), dict(errors))
            append_record(self._journal, _as_record(file.name, finished))
        self.finished[file.name] = finished

    def publish(self, force: bool) -> None:
        """Write the small files and the checksums, and rename the folder to its final name."""
        errors = self.errors
        export = {
            "format": _FORMAT,
            "identity": self.identity,
            **self._header,
            "tensors": {
                tensor.name: {"type": tensor.target, "relative_error": errors[tensor.name]}
                for tensor in self._plan.tensors
            },
        }
        files = {**self._plan.files, EXPORT_NAME: json.dumps(export, indent=1).encode() + b"\n"}
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        sums |= self.checksums
        listing = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()
        with translate_os_errors(self.destination):
            for name, data in {**files, CHECKSUMS_NAME: listing}.items():
                write_synced(self._folder.partial / name, data)
            self._folder.publish(force)
            self._journal_path.unlink()

    def discard(self) -> None:
        """Delete the partial folder and the journal."""
        self._folder.discard()
        self._journal_path.unlink(missing_ok=True)

    def _read_journal(self) -> None:
        """Add the recorded files that match their checksums to `finished`."""
        identity, records = self._parse_journal()
        if identity is not None and identity != self.identity:
            raise ArgumentError(
                ArgumentMessage(
                    f"the unfinished export in {self._folder.partial} is of another model or has other settings; "
                    "run without ",
                    Argument("resume"),
                    " to start from the beginning",
                )
            )
        for file in self._plan.weights:
            path = self._folder.partial / file.name
            if file.name in records and is_regular_file(path) and _hash_file(path) == records[file.name].sha256:
                self.finished[file.name] = records[file.name]

    def _parse_journal(self) -> tuple[str | None, dict[str, FinishedFile]]:
        """Return identity and finished files of the partial folder, or (None, {}) without a complete first line."""
        try:
            journal = read_bounded(self._journal_path, ContainerError, MAX_MANIFEST_BYTES)
            lines = journal.split(b"\n")[:-1]  # an incomplete last line has no newline
            first, *rest = [json.loads(line) for line in lines]
            return str(first["identity"]), {
                record["file"]: FinishedFile(record["sha256"], record["errors"]) for record in rest
            }
        except (ContainerError, ValueError, LookupError, TypeError, RecursionError):
            return None, {}


def is_export(folder: Path) -> bool:
    """Return whether a folder holds an export and nothing else, so that it may be replaced."""
    if _read_export(folder) is None:
        return False
    listed = {*_read_checksums(folder), CHECKSUMS_NAME}
    return all(is_regular_file(path) and path.name in listed for path in folder.iterdir())


def _read_checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 (hex) of each file that SHA256SUMS lists."""
    try:
        listing = read_bounded(folder / CHECKSUMS_NAME, ContainerError).decode("utf-8", "replace")
    except ContainerError:
        return {}
    pairs = (line.partition("  ") for line in listing.splitlines())
    return {name: digest for digest, _, name in pairs}


def _read_export(folder: Path) -> dict[str, Any] | None:
    """Return the content of qwchat-export.json, or None if `folder` does not have a valid one."""
    try:
        found = read_json_object(folder / EXPORT_NAME, ContainerError, MAX_MANIFEST_BYTES)
    except ContainerError:
        return None
    return found if found.get("format") == _FORMAT else None


def _as_record(name: str, file: FinishedFile) -> dict[str, Any]:
    return {"file": name, "sha256": file.sha256, "errors": dict(file.errors)}


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular_file(path, ContainerError) as file:
        while piece := file.read(_HASH_PIECE):
            digest.update(piece)
    return digest.hexdigest()
