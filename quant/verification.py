"""Compare a model folder with the checksums in its manifest.

Every byte of weights.bin is checked: the parts of a tensor by the SHA-256 of the tensor, and the padding between parts
must be zero. The other files that the manifest lists are checked by SHA-256. Files are read, not mapped, so that an
unreadable sector or a file that is truncated meanwhile is reported as damage instead of raising a signal.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quant.container import WEIGHTS_NAME, ModelFolder, combine_digests
from quant.errors import ContainerError
from quant.safe_files import COPIED_FILES, read_bounded

PIECE_BYTES = 1 << 20  # hashed in about a millisecond, the delay of `stop`
PADDING = "padding of weights.bin"
_DIFFERS = "its content does not match the checksum in manifest.json"
_NOT_ZERO = "bytes that must be zero are not zero"
_CHANGED = "it was written or replaced while the model was open"

Throttle = Callable[[float], None]


@dataclass
class _PendingPart:
    """Part of a tensor of which bytes `position` to `stop` of weights.bin are still to be hashed."""

    tensor: str
    number: int
    position: int
    stop: int
    digest: Any = field(default_factory=hashlib.sha256)


class Verification:
    """Check of one model folder. Several threads may call `work`; they share the items.

    Args:
        folder: opened model folder.
        files: names of the other files to check. Those that the manifest does not list are ignored.

    Attributes:
        files: names of the other files that are checked.
        total_bytes: bytes to read.
        done_bytes: bytes read so far.
        damaged: damage found so far: tensor or file -> description.
        removed: whether the folder was removed meanwhile, which ends the check; an open model keeps its weights.
    """

    def __init__(self, folder: ModelFolder, files: Iterable[str] = COPIED_FILES) -> None:
        self._folder = folder
        self.files = tuple(name for name in files if name in folder.manifest["files"])
        parts = [
            _PendingPart(name, number, part["offset"], part["offset"] + part["nbytes"])
            for name, entry in folder.manifest["tensors"].items()
            for number, part in enumerate(entry["parts"].values())
        ]
        self._padding = _uncovered_ranges([(part.position, part.stop) for part in parts], folder.total_bytes)
        # Processed from the end: file names, None for the padding, then the parts in the order of weights.bin.
        self._items: list[_PendingPart | str | None] = [*reversed(parts), None, *self.files]
        self._digests: dict[str, dict[int, bytes]] = {name: {} for name in folder.manifest["tensors"]}
        self._unfinished = len(self._items)
        self._stopped = self._throttled_stopped = False
        self._lock = threading.Lock()
        self.total_bytes = folder.total_bytes + sum(_size(folder.path / name) for name in self.files)
        self.done_bytes = 0
        self.damaged: dict[str, str] = {}
        self.removed = False

    @property
    def finished(self) -> bool:
        """Whether everything has been checked."""
        return self._unfinished <= 0

    @property
    def report(self) -> dict[str, str]:
        """Copy of `damaged` with "tensor" before the names of tensors."""
        tensors = self._folder.manifest["tensors"]
        return {f"tensor {name}" if name in tensors else name: what for name, what in list(self.damaged.items())}

    def stop(self) -> None:
        """Make all workers return after the current piece. The rest stays unchecked."""
        self._stopped = True

    def stop_throttled(self) -> None:
        """Make throttled workers return. Other workers finish the items that they had begun."""
        self._throttled_stopped = True

    def work(self, throttle: Throttle | None = None) -> None:
        """Check items until none is left or `stop` is called.

        Args:
            throttle: called after each piece with the seconds that it took, to pause. A worker with a throttle returns
                after `stop_throttled`.
        """
        try:
            with (self._folder.path / WEIGHTS_NAME).open("rb", buffering=0) as file:
                self._check_identity(file.fileno())
                while (item := self._next_item(throttle)) != "":
                    if self._check(item, file.fileno(), throttle):
                        self._check_identity(file.fileno())
                        with self._lock:
                            self._unfinished -= 1
        except OSError as exc:  # the file cannot be opened; read errors are handled by the checks
            if self._folder.path.exists():
                self._record_damage(WEIGHTS_NAME, f"it cannot be read: {exc.strerror}")
            else:
                self.removed = True
            self._drop_items()

    def _drop_items(self) -> None:
        with self._lock:
            self._items.clear()
            self._unfinished = 0

    def _next_item(self, throttle: Throttle | None) -> _PendingPart | str | None:
        """Return the next item, or "" if this worker is to return."""
        with self._lock:
            leaves = self._stopped or (throttle is not None and self._throttled_stopped)
            return "" if leaves or not self._items else self._items.pop()

    def _check_identity(self, descriptor: int) -> None:
        """Record damage if the file being read is not the mapped one, or has changed since it was mapped."""
        status = os.fstat(descriptor)
        if status.st_nlink == 0 and not self._folder.path.exists():
            self.removed = True
            self._drop_items()
        elif file_identity(status) != file_identity(self._folder.weights_status):
            self._record_damage(WEIGHTS_NAME, _CHANGED)

    def _record_damage(self, name: str, problem: str) -> None:
        with self._lock:
            self.damaged.setdefault(name, problem)

    def _check(self, item: _PendingPart | str | None, descriptor: int, throttle: Throttle | None) -> bool:
        """Check one item. Return False if the check was interrupted."""
        if isinstance(item, str):
            return self._check_file(item)
        if item is None:
            return self._check_padding(descriptor)
        try:
            while item.position < item.stop:
                started = time.perf_counter()
                if self._stopped:
                    return False
                if throttle is not None and self._throttled_stopped:
                    with self._lock:
                        self._items.append(item)
                    return False
                data = self._read(descriptor, item.position, min(PIECE_BYTES, item.stop - item.position))
                if not data:
                    break  # the file was truncated; the digest will differ
                item.digest.update(data)
                item.position += len(data)
                if throttle is not None:
                    throttle(time.perf_counter() - started)
        except OSError as exc:
            self._record_damage(item.tensor, f"it cannot be read: {exc.strerror}")
            return True
        self._compare(item)
        return True

    def _compare(self, part: _PendingPart) -> None:
        """Store the digest of a part. Compare the checksum of the tensor once all its parts are hashed."""
        entry = self._folder.manifest["tensors"][part.tensor]
        with self._lock:
            digests = self._digests[part.tensor]
            digests[part.number] = part.digest.digest()
            if len(digests) < len(entry["parts"]):
                return
        if combine_digests([digests[number] for number in sorted(digests)]) != entry["sha256"]:
            self._record_damage(part.tensor, _DIFFERS)

    def _check_padding(self, descriptor: int) -> bool:
        try:
            for start, stop in self._padding:
                for position in range(start, stop, PIECE_BYTES):
                    if self._stopped:
                        return False
                    if self._read(descriptor, position, min(PIECE_BYTES, stop - position)).strip(b"\0"):
                        self._record_damage(PADDING, _NOT_ZERO)
        except OSError as exc:
            self._record_damage(PADDING, f"it cannot be read: {exc.strerror}")
        return True

    def _check_file(self, name: str) -> bool:
        try:
            data = read_bounded(self._folder.path / name, ContainerError)
        except ContainerError:
            if self._folder.path.exists():
                self._record_damage(name, "it is missing or cannot be read")
            else:
                self.removed = True
                self._drop_items()
            return True
        with self._lock:
            self.done_bytes += len(data)
        if hashlib.sha256(data).hexdigest() != self._folder.manifest["files"][name]["sha256"]:
            self._record_damage(name, _DIFFERS)
        return True

    def _read(self, descriptor: int, position: int, size: int) -> bytes:
        data = os.pread(descriptor, size, position)
        with self._lock:
            self.done_bytes += len(data)
        return data


def verify(folder: ModelFolder) -> dict[str, str]:
    """Check a whole model folder in this thread. Return the damage: tensor or file -> description."""
    verification = Verification(folder)
    verification.work()
    return verification.damaged


def file_identity(status: os.stat_result) -> tuple[int, int, int, int]:
    """Return size, modification and change time in ns, and inode: they change when a file is written or replaced."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def folder_state(folder: ModelFolder, files: Iterable[str]) -> str:
    """Return a hash (hex) of the manifest and of the identities of weights.bin (as mapped) and `files`.

    No file is read. The hash stays the same as long as no file is written or replaced.
    """
    known: list[object] = [str(folder.path.resolve()), folder.fingerprint, file_identity(folder.weights_status)]
    for name in files:
        try:
            known.append((name, file_identity((folder.path / name).stat())))
        except OSError:
            known.append((name, None))
    return hashlib.sha256(repr(known).encode("utf-8", "surrogateescape")).hexdigest()


def _uncovered_ranges(ranges: Sequence[tuple[int, int]], total: int) -> list[tuple[int, int]]:
    """Return the parts of 0..total that `ranges` do not cover. The ranges do not overlap."""
    ordered = sorted(ranges)
    starts, stops = [0, *(stop for _, stop in ordered)], [*(start for start, _ in ordered), total]
    return [(start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
