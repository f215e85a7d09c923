"""The file of a session: one line that says what it is, then one line of JSON per event. It only ever grows.

A process that dies leaves at most one torn line at the end. Reading leaves that out, and the next process that opens
the file for writing cuts it off. What a file says is untrusted: lines that make no sense are counted and left out.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quant.safe_files import parse_json_object, sync_folder
from quant.units import binary_size
from qwchat.conversation.title import clean_line
from qwchat.conversation.tree import Event, Tree
from qwchat.errors import SessionError, SessionInUseError, UsageError

FORMAT = "qwchat session"
VERSION = 1
FILE_NAME = "session.jsonl"
MAX_BYTES = 256 << 20  # Hundreds of full contexts; what is bigger was not written by a conversation.
MAX_LINES = 1_000_000  # Half a million turns: without a limit, lines of a character each take minutes.

_FIRST_BYTES = json.dumps({"format": FORMAT}).rstrip("}").encode()
_UNFINISHED_FILE = FILE_NAME + ".new"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class SessionHeader:
    """What the first line says.

    Attributes:
        id: name of the session's folder.
        created: ISO 8601, UTC.
        model: name of the model that the session began with.
        fingerprint: of that model's weights.
        name: what `--session` called it; "" where nobody did.
    """

    id: str
    created: str
    model: str = ""
    fingerprint: str = ""
    name: str = ""


@dataclass(frozen=True)
class SessionContent:
    """What a session file holds.

    Attributes:
        header: None where not even the first line is whole, which is a session in which nothing was said.
        tree: what was said.
        complete_bytes: bytes up to the end of the last whole line.
        invalid_lines: lines that made no sense.
    """

    header: SessionHeader | None
    tree: Tree = field(default_factory=Tree)
    complete_bytes: int = 0
    invalid_lines: int = 0


def parse_session(data: bytes, session_id: str) -> SessionContent:
    """The session in `data`; any prefix of a session file gives a prefix of the session.

    Raises SessionError where `data` is no session, and where a newer version of qwchat wrote it.
    """
    start = data.find(b"\n") + 1
    if not start:
        if _FIRST_BYTES.startswith(data) or data.startswith(_FIRST_BYTES):
            return SessionContent(None)
        raise _not_a_session(session_id)
    header = _parse_header(data[:start], session_id)
    if data.count(b"\n") > MAX_LINES:
        raise SessionError(
            f"session {session_id} has more than {MAX_LINES:,} lines, which no conversation has: "
            f"qwchat sessions rm {session_id} removes it"
        )
    tree, invalid_lines = Tree(), 0
    while (end := data.find(b"\n", start)) >= 0:
        try:
            tree.apply(_parse_object(data[start:end]))
        except UsageError:
            invalid_lines += 1
        start = end + 1
    return SessionContent(header, tree, start, invalid_lines)


def encode_line(value: dict[str, Any]) -> bytes:
    """`value` as a line of a session file."""
    try:
        return json.dumps(value, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # Half a surrogate pair, which JSON's escapes can carry and UTF-8 cannot.
        return json.dumps(value).encode() + b"\n"


def read_session(folder: Path) -> SessionContent:
    """The session in `folder`, also while somebody else writes it. Raises SessionError."""
    descriptor = _open_file(folder, os.O_RDONLY)
    try:
        return parse_session(_read_all(descriptor, folder.name), folder.name)
    finally:
        os.close(descriptor)


def read_session_bytes(folder: Path) -> bytes:
    """The bytes of a session's file, for a look that need not understand everything. Raises SessionError."""
    descriptor = _open_file(folder, os.O_RDONLY)
    try:
        return _read_all(descriptor, folder.name)
    finally:
        os.close(descriptor)


class SessionFile:
    """A session's file, open for writing and locked against every other process until `close`.

    Made by `create` and `reopen`.
    """

    def __init__(self, descriptor: int, folder: Path, header: SessionHeader, size: int, lines: int) -> None:
        self.folder = folder
        self.header = header
        self._descriptor = descriptor
        self._size = size
        self._lines = lines
        self._unwritten = b""
        self._synced = True

    @classmethod
    def create(cls, folder: Path, header: SessionHeader) -> SessionFile:
        """A new session in `folder`, which exists and is empty. Raises SessionError where nothing can be written.

        The file appears under its name when its first line is whole and on the disk.
        """
        path = folder / _UNFINISHED_FILE
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _save_error(folder.name, error) from error
        try:
            _lock_file(descriptor, folder.name)
            line = encode_line({"format": FORMAT, "version": VERSION} | asdict(header))
            file = cls(descriptor, folder, header, 0, 0)
            file._write(line)
            os.fsync(descriptor)
            path.rename(folder / FILE_NAME)
            sync_folder(folder)
            sync_folder(folder.parent)
        except OSError as error:
            os.close(descriptor)
            raise _save_error(folder.name, error) from error
        return file

    @classmethod
    def reopen(cls, folder: Path) -> tuple[SessionFile, SessionContent]:
        """The session in `folder` and what it holds; a torn line at its end is cut off.

        Raises SessionError where it is open elsewhere, is no session, is damaged or newer than this program, or cannot
        be written.
        """
        descriptor = _open_file(folder, os.O_RDWR | os.O_APPEND)
        try:
            _lock_file(descriptor, folder.name)
            if os.fstat(descriptor).st_nlink == 0:
                raise SessionError(f"session {folder.name} was just removed")
            data = _read_all(descriptor, folder.name)
            content = parse_session(data, folder.name)
            if content.header is None:
                raise SessionError(
                    f"session {folder.name} is empty, it was cut off at its first word: "
                    f"qwchat sessions rm {folder.name} removes it"
                )
            if content.complete_bytes < len(data):
                os.ftruncate(descriptor, content.complete_bytes)
                os.fsync(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise _save_error(folder.name, error) from error
        except SessionError:
            os.close(descriptor)
            raise
        return cls(descriptor, folder, content.header, content.complete_bytes, data.count(b"\n")), content

    def append(self, events: Iterable[Event]) -> None:
        """Write `events` behind what is there. Raises SessionError where that fails.

        Then the file is as it was, and the events are written before those of the next call.
        """
        self._unwritten += b"".join(map(encode_line, events))
        if not self._unwritten:
            return
        if self._size + len(self._unwritten) > MAX_BYTES:
            raise SessionError(f"session {self.folder.name} has reached {binary_size(MAX_BYTES)}: begin a new one")
        if self._lines + self._unwritten.count(b"\n") > MAX_LINES:
            raise SessionError(f"session {self.folder.name} has reached {MAX_LINES:,} lines: begin a new one")
        try:
            self._write(self._unwritten)
        except OSError as error:
            raise _save_error(self.folder.name, error) from error
        self._unwritten = b""

    def sync(self) -> None:
        """Return when everything written is on the disk. Raises SessionError, also for events that wait still."""
        self.append(())
        if self._synced:
            return
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise _save_error(self.folder.name, error) from error
        self._synced = True

    def close(self) -> None:
        """Unlock and close. Events that could not be written are lost."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except BaseException:  # Ctrl-C included, after which it is written again.
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += written
        self._lines += data.count(b"\n")
        self._synced = False


def _open_file(folder: Path, flags: int) -> int:
    """A descriptor of the session's file; neither the folder nor the file may be a link. Raises SessionError."""
    safe = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        within = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | safe)
        try:
            # A pipe under this name would block without O_NONBLOCK.
            descriptor = os.open(FILE_NAME, flags | safe | os.O_NONBLOCK, dir_fd=within)
        finally:
            os.close(within)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise SessionError(
                f"session {folder.name} is a link, which is not followed: move the folder itself there"
            ) from error
        raise SessionError(f"session {folder.name} cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SessionError(
            f"session {folder.name} is damaged, {FILE_NAME} is no file: qwchat sessions rm {folder.name} removes it"
        )
    return descriptor


def _read_all(descriptor: int, session_id: str) -> bytes:
    if os.fstat(descriptor).st_size > MAX_BYTES:
        raise SessionError(
            f"session {session_id} is bigger than {binary_size(MAX_BYTES)}, which no conversation is: "
            f"qwchat sessions rm {session_id} removes it"
        )
    try:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            file.seek(0)
            return file.read(MAX_BYTES)
    except OSError as error:
        raise SessionError(f"session {session_id} cannot be read: {error.strerror}") from error


def _parse_header(line: bytes, session_id: str) -> SessionHeader:
    """The header in the first line. Its id is not believed: a session is called what its folder is called."""
    try:
        value = _parse_object(line)
    except UsageError:
        value = {}
    if value.get("format") != FORMAT or type(value.get("version")) is not int:
        raise _not_a_session(session_id)
    if value["version"] > VERSION:
        raise SessionError(
            f"session {session_id} was written by a newer qwchat (format {value['version']}, this one knows "
            f"{VERSION}): update qwchat to open it"
        )
    return SessionHeader(
        session_id, *(_header_text(value.get(name)) for name in ("created", "model", "fingerprint", "name"))
    )


def _not_a_session(session_id: str) -> SessionError:
    return SessionError(
        f"session {session_id} is damaged, its file does not begin as a session does: "
        f"qwchat sessions rm {session_id} removes it"
    )


def _header_text(value: object) -> str:
    """A text of a header, without what does not belong on a line."""
    return clean_line(value) if isinstance(value, str) else ""


def _parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object on a line. Raises UsageError for anything else."""
    return parse_json_object(line, "a line", UsageError)


def _lock_file(descriptor: int, session_id: str) -> None:
    """Lock the file for this process; where the file system knows no locks, go on without one."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SessionInUseError(
            f"session {session_id} is open in another qwchat: leave it there first, or choose another session"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Alone among all processes that ask for it, for as long as it takes; without a lock where there are none."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)


def _save_error(session_id: str, error: OSError) -> SessionError:
    return SessionError(f"session {session_id} cannot be saved: {error.strerror}")
