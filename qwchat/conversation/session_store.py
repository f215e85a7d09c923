"""Sessions of a user: a folder with one subfolder per session, named after its id."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from quant.safe_files import parse_json
from qwchat.conversation.session_file import (
    FILE_NAME,
    SessionContent,
    SessionFile,
    SessionHeader,
    locked_folder,
    parse_session,
    read_session,
    read_session_bytes,
)
from qwchat.conversation.title import clean_line, title_from_question
from qwchat.errors import SessionError, SessionInUseError, UsageError
from qwchat.text_files import expand_path

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")
_NAME = re.compile(r"[^\W_][\w. -]{0,63}")
_ID_BYTES = 4
_MAX_LISTED = 8  # Sessions listed in a message.
_MAX_TIMESTAMP = 253_370_764_800  # Start of the year 9999, the last one that a datetime can hold.


@dataclass(frozen=True)
class SessionEntry:
    """Summary of a session for lists.

    Attributes:
        id: Name of its folder.
        name: Name given with `--session`, or "".
        title: Title, chosen or made from the first question.
        model: Name of its first model.
        created: ISO 8601, UTC.
        changed: Seconds since 1970 at the last write.
        messages: Number of questions and replies, including alternatives.
        size: Bytes.
        trouble: Why the session cannot be opened, or "".
    """

    id: str
    name: str = ""
    title: str = ""
    model: str = ""
    created: str = ""
    changed: float = 0.0
    messages: int = 0
    size: int = 0
    trouble: str = ""

    @property
    def label(self) -> str:
        """Name and title, or why the session cannot be opened."""
        return self.trouble or " · ".join(filter(None, (self.name, self.title))) or "(empty)"

    @property
    def changed_local(self) -> str:
        """Time of the last write, in local time."""
        return _utc_time(self.changed).astimezone().strftime("%Y-%m-%d %H:%M")

    @property
    def changed_utc(self) -> str:
        """Time of the last write: ISO 8601, UTC."""
        return _utc_time(self.changed).isoformat(timespec="seconds")


def sessions_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of sessions: QWCHAT_SESSIONS, or `sessions` in the user's data folder. It may not exist."""
    if environment.get("QWCHAT_SESSIONS"):
        return expand_path(environment["QWCHAT_SESSIONS"])
    import platformdirs

    return platformdirs.user_data_path("qwchat", appauthor=False) / "sessions"


def check_name(name: str) -> str:
    """Return `name` if a new session may have it.

    Raises:
        UsageError: If it may not.
    """
    if _NAME.fullmatch(name) is None or clean_line(name) != name:
        raise UsageError(
            f"{clean_line(name)!r} is not a session name: use up to 64 letters, digits, spaces, dots and dashes"
        )
    return name


def no_session_error() -> UsageError:
    """Return the error that says that no session was saved yet."""
    return UsageError("there is no session to continue yet: qwchat starts one")


class SessionStore:
    """Sessions in `folder`, or in the user's own folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = sessions_folder() if folder is None else folder

    def entries(self) -> list[SessionEntry]:
        """Return every session, the last written first. Anything else in the folder is ignored."""
        found = [entry for path in self._folders() if (entry := _read_entry(path)) is not None]
        return sorted(found, key=lambda entry: (-entry.changed, entry.id))

    def latest(self) -> SessionEntry:
        """Return the session written last, even if it cannot be opened.

        Raises:
            UsageError: If there are no sessions.
        """
        for path in sorted(self._folders(), key=_modified_time, reverse=True):
            entry = _read_entry(path)
            if entry is not None:
                return entry
        raise no_session_error()

    def find(self, query: str) -> SessionEntry:
        """Return the session with this name, id, id prefix, title or part of a title, in this order of preference.

        Raises:
            UsageError: If no session matches, or several do; the message lists them.
        """
        entries, text = self.entries(), query.casefold()
        for matches in (
            lambda entry: query in (entry.id, entry.name),
            lambda entry: entry.id.casefold().startswith(text) or entry.name.casefold() == text,
            lambda entry: entry.title.casefold() == text,
            lambda entry: text in f"{entry.name}\n{entry.title}".casefold(),
        ):
            found = [entry for entry in entries if query and matches(entry)]
            if len(found) == 1:
                return found[0]
            if found:
                listed = ", ".join(f"{entry.id} ({entry.name or entry.title})" for entry in found[:_MAX_LISTED])
                more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
                raise UsageError(
                    f"{clean_line(query)!r} matches {len(found)} sessions: {listed}{more}; give more of an id"
                )
        raise UsageError(f"there is no session {clean_line(query)!r}: qwchat sessions list shows all sessions")

    def named(self, name: str) -> SessionEntry | None:
        """Return the session whose name or id is `name`, or None. If there are several, the last written one."""
        return next((entry for entry in self.entries() if name in (entry.name, entry.id)), None)

    def create(self, model: str = "", fingerprint: str = "", name: str = "") -> SessionFile:
        """Create a session and return its file, open and locked. If `name` is taken, the session has no name.

        Raises:
            SessionError: If the session cannot be written.
            UsageError: If the name is invalid.
        """
        if name:
            check_name(name)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not name:
                return self._create(model, fingerprint, "")
            with locked_folder(self.folder):  # Otherwise two processes could take the same name.
                return self._create(model, fingerprint, "" if self.named(name) else name)
        except OSError as error:
            raise SessionError(f"sessions cannot be saved in {self.folder}: {error.strerror}") from error

    def _create(self, model: str, fingerprint: str, name: str) -> SessionFile:
        while True:
            folder = self.folder / secrets.token_hex(_ID_BYTES)
            try:
                folder.mkdir(mode=0o700)
                break
            except FileExistsError:
                continue
        created = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            return SessionFile.create(folder, SessionHeader(folder.name, created, model, fingerprint, name))
        except SessionError:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def open(self, session_id: str) -> tuple[SessionFile, SessionContent]:
        """Lock a session and return its file and content.

        Raises:
            SessionError: If that fails.
        """
        return SessionFile.reopen(self._path(session_id))

    def read(self, session_id: str) -> SessionContent:
        """Return the content of a session without locking it.

        Raises:
            SessionError: If it cannot be read.
        """
        return read_session(self._path(session_id))

    def remove(self, session_id: str) -> None:
        """Delete a session and everything in its folder.

        Raises:
            SessionError: If the session is open elsewhere or cannot be deleted.
        """
        path = self._path(session_id)
        try:
            lock = SessionFile.reopen(path)[0]
        except SessionInUseError:
            raise
        except SessionError:  # Damaged sessions can be removed too.
            lock = None
        try:
            # Renamed first, so that a process killed here does not leave half a session.
            doomed = path.with_name(f".{path.name}.{secrets.token_hex(_ID_BYTES)}")
            path.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            raise SessionError(f"session {session_id} cannot be removed: {error.strerror}") from error
        finally:
            if lock is not None:
                lock.close()

    def _path(self, session_id: str) -> Path:
        if _ID.fullmatch(session_id) is None:
            raise UsageError(f"{clean_line(session_id)!r} is not a session id")
        return self.folder / session_id

    def _folders(self) -> list[Path]:
        try:
            found = list(self.folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SessionError(f"the sessions in {self.folder} cannot be read: {error.strerror}") from error
        return [path for path in found if _ID.fullmatch(path.name) and not path.is_symlink() and path.is_dir()]


def _utc_time(seconds: float) -> datetime:
    """Return a file's time stamp in UTC, or 1970 if it is outside the calendar: some file systems store any value."""
    return datetime.fromtimestamp(seconds if 0 <= seconds < _MAX_TIMESTAMP else 0, UTC)


def _modified_time(folder: Path) -> float:
    """Return when a session was last written, in seconds since 1970; 0 if it is not a session."""
    try:
        return (folder / FILE_NAME).lstat().st_mtime
    except OSError:
        return 0.0


def _read_entry(folder: Path) -> SessionEntry | None:
    """Return the summary of a session, or None if it is empty.

    Only the necessary lines are parsed, so that a thousand sessions take a tenth of a second.
    """
    try:
        status = (folder / FILE_NAME).lstat()
    except OSError:
        return None
    try:
        data = read_session_bytes(folder)
        first = data.find(b"\n") + 1
        header = parse_session(data[:first], folder.name).header
    except SessionError as error:
        return SessionEntry(folder.name, changed=status.st_mtime, size=status.st_size, trouble=str(error))
    if header is None:
        return None
    title = _last_title(data) or _first_question(data, first)
    messages = data.count(b'\n{"node": ')
    return SessionEntry(
        folder.name, header.name, title, header.model, header.created, status.st_mtime, messages, status.st_size
    )


def _last_title(data: bytes) -> str:
    start = data.rfind(b'\n{"title": ') + 1
    end = data.find(b"\n", start)
    return clean_line(_text_at(data[start:end], "title")) if start and end > 0 else ""


def _first_question(data: bytes, start: int) -> str:
    start = data.find(b'\n{"node": ', start - 1) + 1
    end = data.find(b"\n", start)
    return title_from_question(_text_at(data[start:end], "node", "content")) if start and end > 0 else ""


def _text_at(line: bytes, *keys: str) -> str:
    """Return the text under `keys` in the JSON on `line`, or "" if there is no such text."""
    try:
        value = parse_json(line, "a line", UsageError)
        for key in keys:
            value = value[key]
    except (UsageError, KeyError, TypeError, IndexError):
        return ""
    return value if isinstance(value, str) else ""
