"""Session file: a header line, then one JSON event per line. The file only grows.

A killed process leaves at most one incomplete line at the end. Readers ignore it, and the next writer removes it. The
file is untrusted: invalid lines are counted and skipped.
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
MAX_BYTES = 256 << 20  # Hundreds of full context windows.
MAX_LINES = 1_000_000  # Half a million turns. Without a limit, parsing hostile one-character lines takes minutes.

_FIRST_BYTES = json.dumps({"format": FORMAT}).rstrip("}").encode()
_UNFINISHED_FILE = FILE_NAME + ".new"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class SessionHeader:
    """First line of a session file.

    Attributes:
        id: Name of the session's folder.
        created: ISO 8601, UTC.
        model: Name of the first model.
        fingerprint: Fingerprint of that model's weights.
        name: Name given with `--session`, or "".
    """

    id: str
    created: str
    model: str = ""
    fingerprint: str = ""
    name: str = ""


@dataclass(frozen=True)
class SessionContent:
    """Content of a session file.

    Attributes:
        header: The header; None if the first line is incomplete, so that the session is empty.
        tree: The conversation.
        complete_bytes: Bytes up to the end of the last complete line.
        invalid_lines: Number of skipped lines.
    """

    header: SessionHeader | None
    tree: Tree = field(default_factory=Tree)
    complete_bytes: int = 0
    invalid_lines: int = 0


def parse_session(data: bytes, session_id: str) -> SessionContent:
    """Return the session in `data`. A prefix of a session file gives a prefix of the session.

    Raises:
        SessionError: If `data` is not a session, or was written by a newer version.
    """
    start = data.find(b"\n") + 1
    if not start:
        if _FIRST_BYTES.startswith(data) or data.startswith(_FIRST_BYTES):
            return SessionContent(None)
        raise _not_a_session(session_id)
    header = _parse_header(data[:start], session_id)
    if data.count(b"\n") > MAX_LINES:
        raise SessionError(
            f"session {session_id} has more than {MAX_LINES:,} lines, so it is damaged: "
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
    """Return `value` as a line of a session file."""
    try:
        return json.dumps(value, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # A lone surrogate: JSON can escape it, UTF-8 cannot encode it.
        return json.dumps(value).encode() + b"\n"


def read_session(folder: Path) -> SessionContent:
    """Return the session in `folder`, even while another process writes it.

    Raises:
        SessionError: If the session cannot be read.
    """
    descriptor = _open_file(folder, os.O_RDONLY)
    try:
        return parse_session(_read_all(descriptor, folder.name), folder.name)
    finally:
        os.close(descriptor)


def read_session_bytes(folder: Path) -> bytes:
    """Return the bytes of a session file, for callers that parse only some of its lines.

    Raises:
        SessionError: If the session cannot be read.
    """
    descriptor = _open_file(folder, os.O_RDONLY)
    try:
        return _read_all(descriptor, folder.name)
    finally:
        os.close(descriptor)


class SessionFile:
    """Session file that is open for writing, and locked until `close`. Use `create` or `reopen` to make one."""

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
        """Create a session in `folder`, which exists and is empty.

        The file gets its name once its first line is on disk.

        Raises:
            SessionError: If the file cannot be written.
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
        """Open the session in `folder`, remove an incomplete last line, and return the file and its content.

        Raises:
            SessionError: If the session is open elsewhere, damaged, newer than this program, or not writable.
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
                    f"session {folder.name} is empty, because its first line is incomplete: "
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
        """Append `events`. If that fails, the file is unchanged and the events are retried by the next call.

        Raises:
            SessionError: If the events cannot be written or the file has reached its size limit.
        """
        self._unwritten += b"".join(map(encode_line, events))
        if not self._unwritten:
            return
        if self._size + len(self._unwritten) > MAX_BYTES:
            raise SessionError(
                f"session {self.folder.name} has reached its limit of {binary_size(MAX_BYTES)}: start a new session"
            )
        if self._lines + self._unwritten.count(b"\n") > MAX_LINES:
            raise SessionError(
                f"session {self.folder.name} has reached its limit of {MAX_LINES:,} lines: start a new session"
            )
        try:
            self._write(self._unwritten)
        except OSError as error:
            raise _save_error(self.folder.name, error) from error
        self._unwritten = b""

    def sync(self) -> None:
        """Wait until everything is on disk.

        Raises:
            SessionError: If that fails, or if events are still unwritten.
        """
        self.append(())
        if self._synced:
            return
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise _save_error(self.folder.name, error) from error
        self._synced = True

    def close(self) -> None:
        """Unlock and close the file. Unwritten events are lost."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except BaseException:  # Also Ctrl-C, after which the data is written again.
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += written
        self._lines += data.count(b"\n")
        self._synced = False


def _open_file(folder: Path, flags: int) -> int:
    """Return a descriptor of the session file. Neither the folder nor the file may be a symbolic link.

    Raises:
        SessionError: If the file cannot be opened.
    """
    no_links = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        folder_descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | no_links)
        try:
            # Without O_NONBLOCK, opening a pipe of this name would block.
            descriptor = os.open(FILE_NAME, flags | no_links | os.O_NONBLOCK, dir_fd=folder_descriptor)
        finally:
            os.close(folder_descriptor)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise SessionError(
                f"session {folder.name} is a symbolic link, which is not followed: move the folder there"
            ) from error
        raise SessionError(f"session {folder.name} cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SessionError(
            f"session {folder.name} is damaged ({FILE_NAME} is not a regular file): "
            f"qwchat sessions rm {folder.name} removes it"
        )
    return descriptor


def _read_all(descriptor: int, session_id: str) -> bytes:
    if os.fstat(descriptor).st_size > MAX_BYTES:
        raise SessionError(
            f"session {session_id} is bigger than {binary_size(MAX_BYTES)}, so it is damaged: "
            f"qwchat sessions rm {session_id} removes it"
        )
    try:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            file.seek(0)
            return file.read(MAX_BYTES)
    except OSError as error:
        raise SessionError(f"session {session_id} cannot be read: {error.strerror}") from error


def _parse_header(line: bytes, session_id: str) -> SessionHeader:
    """Return the header. Its id is the name of the folder, whatever the file says."""
    try:
        value = _parse_object(line)
    except UsageError:
        value = {}
    if value.get("format") != FORMAT or type(value.get("version")) is not int:
        raise _not_a_session(session_id)
    if value["version"] > VERSION:
        raise SessionError(
            f"session {session_id} was written by a newer qwchat (format {value['version']}, this one supports "
            f"{VERSION}): update qwchat to open it"
        )
    return SessionHeader(
        session_id, *(_header_text(value.get(name)) for name in ("created", "model", "fingerprint", "name"))
    )


def _not_a_session(session_id: str) -> SessionError:
    return SessionError(
        f"session {session_id} is damaged (its first line is not a session header): "
        f"qwchat sessions rm {session_id} removes it"
    )


def _header_text(value: object) -> str:
    """Return a text of the header, cleaned to one line."""
    return clean_line(value) if isinstance(value, str) else ""


def _parse_object(line: bytes) -> dict[str, Any]:
    """Return the JSON object on a line. Raises UsageError for anything else."""
    return parse_json_object(line, "a line", UsageError)


def _lock_file(descriptor: int, session_id: str) -> None:
    """Lock the file for this process, unless the file system does not support locks."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SessionInUseError(
            f"session {session_id} is open in another qwchat: close it there, or choose another session"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on the folder, unless the file system does not support locks."""
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
