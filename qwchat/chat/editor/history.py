"""History file of typed input: one JSON object per line, shared by all chats of a user."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant.safe_files import atomic_write, open_regular_file, parse_json
from qwchat.chat.editor.paste_folds import Span

MAX_BYTES = 2 << 20  # Beyond this, the older half is dropped.
MAX_ENTRY_BYTES = 256 << 10
LOCK_SECONDS = 0.5


def history_file() -> Path:
    """Return the path of this user's input history."""
    import platformdirs

    return platformdirs.user_state_path("qwchat", appauthor=False) / "history.jsonl"


@dataclass(frozen=True)
class HistoryEntry:
    """One input as it was sent, with the positions of its folded pastes."""

    text: str
    pastes: tuple[Span, ...] = ()


class HistoryFile:
    """Inputs on disk, readable for their owner only (mode 0600).

    Each entry is appended in a single write of one line, so that two chats may interleave lines but never characters. A
    line cut short by a killed process is skipped. The size is bounded: once the file exceeds MAX_BYTES, its older half
    is dropped. A lock file beside it keeps one chat from appending to a file that another chat replaces.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> list[HistoryEntry]:
        """Return the entries, oldest first. Only the end of a huge file is read; an unreadable file counts as empty."""
        try:
            lines = self._read_end(2 * MAX_BYTES).splitlines()
        except OSError:
            return []
        return [entry for entry in map(_parse_entry, lines) if entry is not None]

    def append(self, entry: HistoryEntry) -> None:
        """Append `entry`, unless it is too big. Do nothing if the file cannot be written."""
        record: dict[str, Any] = {"text": entry.text}
        if entry.pastes:
            record["pastes"] = entry.pastes
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace")
        if len(line) > MAX_ENTRY_BYTES:
            return
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _lock(self.path.with_name(self.path.name + ".lock")) as locked:
                if self._append_line(line) > MAX_BYTES and locked:
                    self._drop_older_half()

    def _read_end(self, size: int) -> bytes:
        """Return the last `size` bytes of the file.

        Raises:
            OSError: If the file cannot be read or is not a regular file.
        """
        with open_regular_file(self.path, OSError) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size)

    def _append_line(self, line: bytes) -> int:
        """Append `line` on a line of its own and return the size of the file in bytes."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{self.path} is not a regular file")
            os.fchmod(descriptor, 0o600)
            size = os.fstat(descriptor).st_size
            os.lseek(descriptor, max(0, size - 1), os.SEEK_SET)
            ends_with_newline = not size or os.read(descriptor, 1) == b"\n"
            os.write(descriptor, (b"" if ends_with_newline else b"\n") + line + b"\n")
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def _drop_older_half(self) -> None:
        """Replace the file atomically by its newer half."""
        newer = self._read_end(MAX_BYTES // 2).partition(b"\n")[2]
        with atomic_write(self.path) as file:
            file.write(newer)


def _parse_entry(line: bytes) -> HistoryEntry | None:
    """Return the entry on a line, or None if it is invalid: the file may be damaged or forged."""
    try:
        record = parse_json(line, "a line", ValueError)
    except ValueError:
        return None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str) or not text:
        return None
    text = text.encode("utf-8", "replace").decode()  # JSON can hold lone surrogates, which are not text.
    return HistoryEntry(text, _parse_spans(record.get("pastes"), len(text)))


def _parse_spans(found: object, length: int) -> tuple[Span, ...]:
    """Return the spans, or none unless all are ordered, disjoint and within `length` characters."""
    spans: list[Span] = []
    for pair in found if isinstance(found, list) else ():
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(bound) is int for bound in pair)):
            return ()
        if not (spans[-1][1] if spans else 0) <= pair[0] < pair[1] <= length:
            return ()
        spans.append((pair[0], pair[1]))
    return tuple(spans)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Hold the lock file `path`. Yield False if another process holds it for longer than LOCK_SECONDS."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        end = time.monotonic() + LOCK_SECONDS
        locked = False
        while not locked and time.monotonic() < end:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
            except BlockingIOError:
                time.sleep(0.01)
        yield locked
    finally:
        os.close(descriptor)
