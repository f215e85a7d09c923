"""What the model has read, kept beside a session, so that coming back to it reads nothing again.

A snapshot can always be made anew from the session's text, so nothing here may stand in the way of a conversation: what
cannot be used or written becomes a notice.
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

FILE_NAME = "kv.snapshot"  # in the session's folder
MIN_PREFILL_SECONDS = 0.5  # of reading that are worth a file
MAX_UNSAVED_SECONDS = 10.0  # of reading that may be lost with the process: more is kept when a turn has ended
_DISK_BYTES_PER_SECOND = 200e6  # bytes, of a slow disk
_FREE_SPACE_FACTOR = 2  # times its size must be free on the disk

SnapshotMode = Literal["auto", "on", "off"]


class SnapshotModel(Protocol):
    """The part of `qwchat.Model` that a snapshot needs; see there."""

    @property
    def cached_ids(self) -> Any:
        """Token ids whose keys and values the cache holds (positions,) i64."""

    @property
    def cache_bytes(self) -> int:
        """Size of a snapshot."""

    @property
    def reevaluation_seconds(self) -> float:
        """What reading these tokens again would take."""

    def save_cache(self, path: Path) -> int:
        """Write a snapshot."""

    def restore_cache(self, path: Path) -> int:
        """Fill the cache from a snapshot."""


class KVSnapshots:
    """The snapshots of the sessions that a model talks in, one after the other.

    `mode`: `on` keeps one of every session, `auto` where reading again would take longer than half a second and
    than writing, `off` none.  `limit`: bytes that all of them may take; those that were used
    longest ago make room.
    """

    def __init__(self, model: SnapshotModel, mode: SnapshotMode, limit: int) -> None:
        self._model, self._mode, self._limit = model, mode, limit
        self._saved_ids = b""  # token ids that the cache held when a session was opened, or kept or left

    def restore(self, folder: Path) -> str | None:
        """Go on from the snapshot in a session's folder, where there is one; a notice where it cannot be used."""
        notice = None if self._mode == "off" else self._read_snapshot(folder / FILE_NAME)
        self._saved_ids = self._ids()
        return notice

    def mark_unsaved(self) -> None:
        """A session has begun with what was read in another: leaving it keeps that here, too."""
        self._saved_ids = b""

    def _read_snapshot(self, path: Path) -> str | None:
        try:
            self._model.restore_cache(path)
            os.utime(path)  # used now: others make room before it
        except SnapshotError as error:
            return ArgumentMessage(error, ": the conversation is read again")
        except OSError:  # There is none, or it was removed just now.
            return None
        return None

    def save_after_turn(self, folder: Path) -> str | None:
        """After a turn: keep what was read since, where that took so long that it must not go with the process."""
        ids = self._ids()
        new = len(ids) - (len(self._saved_ids) if ids.startswith(self._saved_ids) else 0)
        if self._mode == "off" or not ids or self._model.reevaluation_seconds * new / len(ids) < MAX_UNSAVED_SECONDS:
            return None
        return self.save_or_remove(folder)

    def save_or_remove(self, folder: Path) -> str | None:
        """Keep what the model has read in this session, or remove what is no longer worth keeping; perhaps a notice."""
        ids = self._ids()
        if ids == self._saved_ids and self._mode != "off":
            return None  # Nothing was read here.
        self._saved_ids = ids
        path = folder / FILE_NAME
        try:
            problem = self._free_space(path) if self._is_worth_saving() else ""
            if problem is not None:
                path.unlink(missing_ok=True)
                return problem if self._mode == "on" else None
            self._model.save_cache(path)
        except SnapshotError as error:
            return ArgumentMessage(error)
        except OSError as error:
            return f"the snapshot {path} cannot be kept: {error.strerror}"
        return None

    def _ids(self) -> bytes:
        ids: bytes = self._model.cached_ids.tobytes()
        return ids

    def _is_worth_saving(self) -> bool:
        if self._mode != "auto":
            return self._mode == "on"
        return self._model.reevaluation_seconds > max(
            MIN_PREFILL_SECONDS, self._model.cache_bytes / _DISK_BYTES_PER_SECOND
        )

    def _free_space(self, path: Path) -> str | None:
        """Remove snapshots of other sessions as far as needed; why there is no room, where there is none."""
        needed = self._model.cache_bytes
        if needed > self._limit:
            return (
                f"a snapshot of {binary_size(needed)} is more than snapshot-limit: the conversation will be read again"
            )
        if shutil.disk_usage(path.parent).free < _FREE_SPACE_FACTOR * needed:
            return f"there is too little room on the disk for a snapshot of {binary_size(needed)}"
        others = []
        for other in path.parent.parent.glob(f"*/{FILE_NAME}"):
            status = other.lstat()
            # A link, also to a folder, leads to what belongs elsewhere, and only a file takes room.
            if other != path and stat.S_ISREG(status.st_mode) and not other.parent.is_symlink():
                others.append((status.st_mtime, status.st_size, other))
        total = needed + sum(size for _, size, _ in others)
        for _, size, other in sorted(others):
            if total <= self._limit:
                break
            other.unlink(missing_ok=True)
            total -= size
        return None
