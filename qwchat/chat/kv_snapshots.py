"""Snapshots of the KV cache beside saved sessions, so that a resumed session needs no prefill.

A snapshot can always be recreated from the text of the session, so no failure here may disturb the conversation: a
snapshot that cannot be used or written only leads to a notice.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Any, Literal, Protocol

from quant.units import binary_size
from quant.wording import ArgumentMessage
from qwchat.errors import SnapshotError

FILE_NAME = "kv.snapshot"  # In the folder of the session.
MIN_PREFILL_SECONDS = 0.5  # A shorter prefill is not worth a file.
MAX_UNSAVED_SECONDS = 10.0  # Prefill time that a crash may cost; beyond that, a snapshot is saved after the turn.
_DISK_BYTES_PER_SECOND = 200e6  # Write speed of a slow disk.
_FREE_SPACE_FACTOR = 2  # The free disk space must be this multiple of the snapshot.

SnapshotMode = Literal["auto", "on", "off"]


class SnapshotModel(Protocol):
    """The part of `qwchat.Model` that snapshots use. The methods are documented there."""

    @property
    def cached_ids(self) -> Any:
        """Token ids of the KV cache (positions,) i64."""

    @property
    def cache_bytes(self) -> int:
        """Size of a snapshot in bytes."""

    @property
    def reevaluation_seconds(self) -> float:
        """Estimated time to evaluate the cached tokens again."""

    def save_cache(self, path: Path) -> int:
        """Write a snapshot."""

    def restore_cache(self, path: Path) -> int:
        """Fill the cache from a snapshot."""


class KVSnapshots:
    """Snapshots of the sessions in which one model replies, one session after another.

    Args:
        model: the model whose KV cache is saved and restored; None if a server has the cache, so that nothing is done.
        mode: `on` saves a snapshot of every session, `off` of none; `auto` if the prefill would take longer than half a
            second and than writing the file.
        limit: bytes that all snapshots may take together. The least recently used ones are removed first.
    """

    def __init__(self, model: SnapshotModel | None, mode: SnapshotMode, limit: int) -> None:
        self._model, self._mode, self._limit = model, mode, limit
        self._saved_ids = b""  # Cached token ids when a session was last opened, saved or closed.

    def switch_model(self, model: SnapshotModel | None) -> None:
        """Save and restore the KV cache of another model from now on. The snapshot on the disk stays until then."""
        self._model, self._saved_ids = model, b""

    def restore(self, folder: Path) -> str | None:
        """Load the snapshot in the folder of a session, if it exists. Return a notice if it cannot be used."""
        model = None if self._mode == "off" else self._model
        notice = None if model is None else self._read_snapshot(model, folder / FILE_NAME)
        self._saved_ids = self._ids()
        return notice

    def mark_unsaved(self) -> None:
        """Mark the cache as unsaved: a new session started with turns of another one and needs its own snapshot."""
        self._saved_ids = b""

    def _read_snapshot(self, model: SnapshotModel, path: Path) -> str | None:
        try:
            model.restore_cache(path)
            os.utime(path)  # Marks it as recently used, so that older snapshots are removed first.
        except SnapshotError as error:
            return ArgumentMessage(error, ": the conversation will be evaluated again")
        except OSError:  # The session has no snapshot, or it was just removed.
            return None
        return None

    def save_after_turn(self, folder: Path) -> str | None:
        """Save a snapshot after a turn if the unsaved tokens took long to evaluate. Return a notice if that failed."""
        model, ids = self._model, self._ids()
        if model is None:
            return None
        new = len(ids) - (len(self._saved_ids) if ids.startswith(self._saved_ids) else 0)
        if self._mode == "off" or not ids or model.reevaluation_seconds * new / len(ids) < MAX_UNSAVED_SECONDS:
            return None
        return self.save_or_remove(folder)

    def save_or_remove(self, folder: Path) -> str | None:
        """Save the KV cache for this session, or remove a snapshot not worth its space. Return a notice on failure."""
        model, ids = self._model, self._ids()
        if model is None:
            return None
        if ids == self._saved_ids and self._mode != "off":
            return None  # The cache has not changed since.
        self._saved_ids = ids
        path = folder / FILE_NAME
        try:
            problem = self._free_space(model, path) if self._is_worth_saving(model) else ""
            if problem is not None:
                path.unlink(missing_ok=True)
                return problem if self._mode == "on" else None
            model.save_cache(path)
        except SnapshotError as error:
            return ArgumentMessage(error)
        except OSError as error:
            return f"cannot save the snapshot {path}: {error.strerror}"
        return None

    def _ids(self) -> bytes:
        ids: bytes = b"" if self._model is None else self._model.cached_ids.tobytes()
        return ids

    def _is_worth_saving(self, model: SnapshotModel) -> bool:
        if self._mode != "auto":
            return self._mode == "on"
        return model.reevaluation_seconds > max(MIN_PREFILL_SECONDS, model.cache_bytes / _DISK_BYTES_PER_SECOND)

    def _free_space(self, model: SnapshotModel, path: Path) -> str | None:
        """Remove snapshots of other sessions until this one fits. Return the reason if it cannot."""
        needed = model.cache_bytes
        if needed > self._limit:
            return (
                f"a snapshot of {binary_size(needed)} exceeds snapshot-limit: the conversation will be evaluated again"
            )
        if shutil.disk_usage(path.parent).free < _FREE_SPACE_FACTOR * needed:
            return f"there is not enough disk space for a snapshot of {binary_size(needed)}"
        others = []
        for other in path.parent.parent.glob(f"*/{FILE_NAME}"):
            status = other.lstat()
            # Files behind links belong to somewhere else, and only regular files count towards the limit.
            if other != path and stat.S_ISREG(status.st_mode) and not other.parent.is_symlink():
                others.append((status.st_mtime, status.st_size, other))
        total = needed + sum(size for _, size, _ in others)
        for _, size, other in sorted(others):
            if total <= self._limit:
                break
            other.unlink(missing_ok=True)
            total -= size
        return None
