"""The sessions of a user: finding, listing, creating and removing them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from qwchat.conversation.session_file import SessionFile
from qwchat.conversation.session_store import SessionEntry, SessionStore, sessions_folder
from qwchat.conversation.tree import Tree
from qwchat.errors import SessionError, SessionInUseError, UsageError


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore(tmp_path / "sessions")


def make_session(
    store: SessionStore, question: str, title: str | None = None, *, name: str = "", at: float | None = None
) -> str:
    """Write a session with one question and one reply at `at` seconds, and return its id."""
    file = store.create("mini", "0123abcd", name)
    tree = Tree(lambda event: file.append([event]))
    tree.add("user", question)
    tree.add("assistant", "Well.")
    if title is not None:
        tree.set_title(title)
    file.close()
    if at is not None:
        os.utime(file.folder / "session.jsonl", (at, at))
    return file.folder.name


def test_sessions_are_listed_the_latest_first(store: SessionStore) -> None:
    assert store.entries() == []
    with pytest.raises(UsageError, match="there is no session to continue yet: qwchat starts one"):
        store.latest()
    old = make_session(store, "Name three seas.", at=1_000)
    new = make_session(store, "Hello", "Greetings", name="day 1", at=2_000)
    first, second = store.entries()
    assert (first.id, first.name, first.title, first.model, first.messages) == (new, "day 1", "Greetings", "mini", 2)
    assert (second.id, second.name, second.title, second.changed) == (old, "", "Name three seas.", 1_000)
    assert store.latest() == first
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((store.folder / new).stat().st_mode) == 0o700


@pytest.mark.parametrize("changed", [-1e9, 1e14])
def test_time_stamps_outside_the_calendar_can_be_shown(changed: float) -> None:
    entry = SessionEntry("a1", changed=changed)
    assert entry.changed_utc == "1970-01-01T00:00:00+00:00"
    assert entry.changed_local[:4] in ("1969", "1970")


def test_the_last_title_is_used(store: SessionStore) -> None:
    session = make_session(store, "Hello", "One")
    file, content = store.open(session)
    content.tree.listener = lambda event: file.append([event])
    content.tree.set_title('Two\n{"title": "Three"}')
    file.close()
    assert [entry.title for entry in store.entries()] == ['Two {"title": "Three"}']


def test_only_sessions_are_listed(store: SessionStore) -> None:
    session = make_session(store, "Hello")
    (store.folder / "notes.txt").write_text("x")
    (store.folder / "empty").mkdir()
    (store.folder / ".hidden").mkdir()
    (store.folder / "a b").mkdir()
    (store.folder / "link").symlink_to(session)
    torn = store.create().folder / "session.jsonl"
    torn.write_bytes(torn.read_bytes()[:30])
    assert [entry.id for entry in store.entries()] == [session]


def test_unreadable_sessions_are_listed_with_the_reason(store: SessionStore) -> None:
    session = make_session(store, "Hello")
    (store.folder / session / "session.jsonl").write_text("hello\n")
    (entry,) = store.entries()
    assert entry.trouble == (
        f"session {session} is damaged (its first line is not a session header): "
        f"qwchat sessions rm {session} removes it"
    )
    assert store.latest() == entry


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("work", "aa11"),
        ("aa11", "aa11"),
        ("aa1", "aa11"),
        ("AA1", "aa11"),
        ("Work", "aa11"),
        ("aa2", "aa22"),
        ("seas", "aa22"),
        ("Three LAKES", "bb33"),
        ("lakes", "bb33"),
    ],
)
def test_a_session_is_found_by_name_id_or_title(store: SessionStore, wanted: str, found: str) -> None:
    make_three_sessions(store)
    assert store.find(wanted).id == found


def make_three_sessions(store: SessionStore) -> None:
    for number, (name, title, session) in enumerate(
        [("work", "Work on seas and seals", "aa11"), ("", "Seas", "aa22"), ("", "Three lakes", "bb33")]
    ):
        made = make_session(store, "Hello", title, name=name, at=1_000 + number)
        (store.folder / made).rename(store.folder / session)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("aa", "'aa' matches 2 sessions: aa22 (Seas), aa11 (work); give more of an id"),
        ("sea", "'sea' matches 2 sessions: aa22 (Seas), aa11 (work); give more of an id"),
        ("\x1b[2Jx", "there is no session '[2Jx': qwchat sessions list shows all sessions"),
        ("", "there is no session '': qwchat sessions list shows all sessions"),
    ],
)
def test_no_match_and_ambiguous_matches_are_refused(store: SessionStore, wanted: str, message: str) -> None:
    make_three_sessions(store)
    with pytest.raises(UsageError) as caught:
        store.find(wanted)
    assert str(caught.value) == message


def test_named_matches_whole_names_only(store: SessionStore) -> None:
    make_three_sessions(store)
    found = store.named("work")
    assert found is not None
    assert found.id == "aa11"
    assert store.named("wor") is None


@pytest.mark.parametrize("name", ["-x", "a/b", "..", "", "a\nb", "a\x1bb", "x" * 65, " a", "a "])
def test_invalid_session_names(store: SessionStore, name: str) -> None:
    if name == "":
        assert store.create(name="").header.name == ""
        return
    with pytest.raises(UsageError, match="is not a session name"):
        store.create(name=name)
    assert not store.folder.exists()


@pytest.mark.parametrize("session", ["../x", "/etc", "", ".", "a/b", "-x"])
def test_an_id_cannot_leave_the_folder(store: SessionStore, session: str) -> None:
    for action in (store.open, store.read, store.remove):
        with pytest.raises(UsageError, match="is not a session id"):
            action(session)


def test_removing_deletes_the_whole_folder_but_follows_no_links(store: SessionStore, tmp_path: Path) -> None:
    session = make_session(store, "Hello")
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    (store.folder / session / "link").symlink_to(kept)
    (store.folder / session / "kv.snapshot").write_bytes(b"x")
    store.remove(session)
    assert list(store.folder.iterdir()) == []
    assert (kept / "file").read_text() == "x"
    with pytest.raises(SessionError, match=f"session {session} cannot be removed: No such file"):
        store.remove(session)


def test_an_open_session_is_not_removed(store: SessionStore) -> None:
    session = make_session(store, "Hello")
    file, _ = store.open(session)
    with pytest.raises(SessionInUseError):
        store.remove(session)
    file.close()
    store.remove(session)
    assert store.entries() == []


def test_a_damaged_session_can_be_removed(store: SessionStore) -> None:
    session = make_session(store, "Hello")
    (store.folder / session / "session.jsonl").write_text("hello\n")
    store.remove(session)
    assert store.entries() == []


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SessionError) as caught:
        SessionStore(tmp_path / "file" / "sessions").create()
    assert str(caught.value) == f"sessions cannot be saved in {tmp_path}/file/sessions: Not a directory"


def test_a_failed_creation_leaves_nothing(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SessionError, match="cannot be saved: No space left on device"):
        store.create()
    assert list(store.folder.iterdir()) == []


def test_control_characters_are_removed_from_titles(store: SessionStore) -> None:
    make_session(store, "\x1b]0;evil\x07 first \u202eline\nsecond", at=1_000)
    make_session(store, "x", "\x1b[31mred\x1b[0m\ttitle\r\n" + "y" * 500, at=500)
    one, two = store.entries()
    assert one.title == "]0;evil first line"
    assert two.title == "[31mred[0m title"[:16] + " " + "y" * (199 - 17) + "…"


def test_lines_that_only_look_like_titles_are_ignored(store: SessionStore) -> None:
    session = make_session(store, "Hello")
    path = store.folder / session / "session.jsonl"
    for line in (b'{"title": 7}', b'{"title": ' + b"[" * 100_000, b'{"title": "x', b'{"title": "\xff"}'):
        path.write_bytes(path.read_bytes().split(b'\n{"title"')[0].rstrip(b"\n") + b"\n" + line + b"\n")
        assert [entry.title for entry in store.entries()] == ["Hello"]


def test_the_folder_comes_from_the_environment(tmp_path: Path) -> None:
    assert sessions_folder({"QWCHAT_SESSIONS": str(tmp_path)}) == tmp_path
    assert sessions_folder({}).parts[-2:] == ("qwchat", "sessions")


def test_opening_a_session_that_is_being_removed_fails(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    session = make_session(store, "Hello")
    real = os.fstat

    def gone(descriptor: int) -> object:
        (store.folder / session / "session.jsonl").unlink(missing_ok=True)
        return real(descriptor)

    monkeypatch.setattr(os, "fstat", gone)
    with pytest.raises(SessionError, match=f"session {session} was just removed"):
        SessionFile.reopen(store.folder / session)
