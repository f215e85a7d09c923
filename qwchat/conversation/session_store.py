"""The sessions of this user: a folder with one folder per session, named after its id."""

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
_MAX_LISTED = 8  # candidates in a message
_MAX_TIMESTAMP = 253_370_764_800  # the year 9999, in which some time zones are past what a datetime can hold


@dataclass(frozen=True)
class SessionEntry:
    """What a list shows of a session.

    Attributes:
        id: name of its folder.
        name: what `--session` called it, or "".
        title: made from the first question, or chosen.
        model: name of the model it began with.
        created: ISO 8601, UTC.
        changed: seconds since 1970 when something was last written.
        messages: how many questions and replies there are, alternatives included.
        size: bytes.
        trouble: why it cannot be opened, or "".
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
        """Name and title, or why it cannot be opened."""
        return self.trouble or " · ".join(filter(None, (self.name, self.title))) or "(nothing said)"

    @property
    def changed_local(self) -> str:
        """When something was last written, by the clock of this machine."""
        return _utc_time(self.changed).astimezone().strftime("%Y-%m-%d %H:%M")

    @property
    def changed_utc(self) -> str:
        """The same for programs: ISO 8601, UTC."""
        return _utc_time(self.changed).isoformat(timespec="seconds")


def sessions_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where sessions are; it need not exist yet. QWCHAT_SESSIONS, or `sessions` in the user's data folder."""
    if environment.get("QWCHAT_SESSIONS"):
        return expand_path(environment["QWCHAT_SESSIONS"])
    import platformdirs

    return platformdirs.user_data_path("qwchat", appauthor=False) / "sessions"


def check_name(name: str) -> str:
    """`name` as a new session may be called. Raises UsageError."""
    if _NAME.fullmatch(name) is None or clean_line(name) != name:
        raise UsageError(
            f"a session cannot be called {clean_line(name)!r}: use letters, digits, blanks, dots and dashes, 64 at most"
        )
    return name


class SessionStore:
    """The sessions in `folder`, or in the user's own."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = sessions_folder() if folder is None else folder

    def entries(self) -> list[SessionEntry]:
        """Every session, the one that was written last first. What is no session is passed over."""
        found = [entry for path in self._folders() if (entry := _read_entry(path)) is not None]
        return sorted(found, key=lambda entry: (-entry.changed, entry.id))

    def latest(self) -> SessionEntry:
        """The session that was written last, also where it cannot be opened. Raises UsageError where there is none."""
        for path in sorted(self._folders(), key=_modified_time, reverse=True):
            entry = _read_entry(path)
            if entry is not None:
                return entry
        raise UsageError("there is no session to continue yet: qwchat begins one")

    def find(self, wanted: str) -> SessionEntry:
        """The session that `wanted` means: its name, its id or how that begins, its title or a part of it.

        The first of these that fits any session decides. Raises UsageError where none fits, or several, which it lists.
        """
        entries, text = self.entries(), wanted.casefold()
        for fits in (
            lambda entry: wanted in (entry.id, entry.name),
            lambda entry: entry.id.casefold().startswith(text) or entry.name.casefold() == text,
            lambda entry: entry.title.casefold() == text,
            lambda entry: text in f"{entry.name}\n{entry.title}".casefold(),
        ):
            found = [entry for entry in entries if wanted and fits(entry)]
            if len(found) == 1:
                return found[0]
            if found:
                listed = ", ".join(f"{entry.id} ({entry.name or entry.title})" for entry in found[:_MAX_LISTED])
                more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
                raise UsageError(
                    f"{clean_line(wanted)!r} fits {len(found)} sessions: {listed}{more}; give more of one's id"
                )
        raise UsageError(f"there is no session {clean_line(wanted)!r}: qwchat sessions list shows those there are")

    def named(self, name: str) -> SessionEntry | None:
        """The session whose name or whole id is `name`, the one written last if there are several."""
        return next((entry for entry in self.entries() if name in (entry.name, entry.id)), None)

    def create(self, model: str = "", fingerprint: str = "", name: str = "") -> SessionFile:
        """A new session, open and locked; without `name` where another session has that by now.

        Raises SessionError where it cannot be written, UsageError for its name.
        """
        if name:
            check_name(name)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not name:
                return self._create(model, fingerprint, "")
            with locked_folder(self.folder):  # Two that begin at once would both find the name free.
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
        """The session with this id, locked, and what it holds. Raises SessionError."""
        return SessionFile.reopen(self._path(session_id))

    def read(self, session_id: str) -> SessionContent:
        """What the session with this id holds, without locking it. Raises SessionError."""
        return read_session(self._path(session_id))

    def remove(self, session_id: str) -> None:
        """Delete a session with all that lies in its folder. Raises SessionError, also where it is open somewhere."""
        path = self._path(session_id)
        try:
            lock = SessionFile.reopen(path)[0]
        except SessionInUseError:
            raise
        except SessionError:  # What is damaged can be removed too.
            lock = None
        try:
            # Renamed first: what is left when this process dies in between is no session.
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
            raise UsageError(f"{clean_line(session_id)!r} is no id of a session")
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
    """A file's time stamp in UTC; 1970 for one that the calendar does not have, since some disks hold any."""
    return datetime.fromtimestamp(seconds if 0 <= seconds < _MAX_TIMESTAMP else 0, UTC)


def _modified_time(folder: Path) -> float:
    """When a session was last written, in seconds since 1970; 0 for what is no session."""
    try:
        return (folder / FILE_NAME).lstat().st_mtime
    except OSError:
        return 0.0


def _read_entry(folder: Path) -> SessionEntry | None:
    """A session's facts, found without taking it apart; None where nothing was ever said.

    Only the lines that a list needs are parsed: a thousand sessions take a tenth of a second.
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
    """The text under `keys` in the JSON on `line`; "" where there is none."""
    try:
        value = parse_json(line, "a line", UsageError)
        for key in keys:
            value = value[key]
    except (UsageError, KeyError, TypeError, IndexError):
        return ""
    return value if isinstance(value, str) else ""
