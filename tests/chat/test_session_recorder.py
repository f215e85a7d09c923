"""What a chat writes into its session, and what happens if writing fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qwchat.chat.session_recorder import SessionRecorder
from qwchat.conversation.session_store import SessionStore
from qwchat.errors import SessionInUseError


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore(tmp_path / "sessions")


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def recorder(store: SessionStore, warnings: list[str]) -> SessionRecorder:
    recorder = SessionRecorder(store, warnings.append)
    recorder.set_model("mini", "0123abcd")
    return recorder


def turn_texts(store: SessionStore, session: str | None) -> list[str]:
    assert session is not None
    return [node.content for node in store.read(session).tree.path()]


def test_nothing_is_written_before_the_first_message(store: SessionStore, recorder: SessionRecorder) -> None:
    recorder.tree.set_system("Be brief.")
    recorder.flush()
    recorder.close()
    assert not store.folder.exists()
    assert recorder.id is None


def test_every_turn_is_in_the_file_at_once(store: SessionStore, recorder: SessionRecorder) -> None:
    recorder.tree.set_system("Be brief.")
    recorder.tree.set_title("Seas")
    recorder.tree.add("user", "Name a sea.")
    assert turn_texts(store, recorder.id) == ["Name a sea."]
    recorder.tree.add("assistant", "North.", model="0123abcd")
    assert turn_texts(store, recorder.id) == ["Name a sea.", "North."]
    tree = store.read(recorder.id or "").tree
    assert (tree.system, tree.title) == ("Be brief.", "Seas")
    header = store.read(recorder.id or "").header
    assert header is not None
    assert (header.model, header.fingerprint, header.created) == ("mini", "0123abcd", recorder.created)


def test_a_session_continues_where_it_was_left(
    store: SessionStore, recorder: SessionRecorder, warnings: list[str]
) -> None:
    recorder.tree.add("user", "one")
    recorder.close()
    again = SessionRecorder(store, warnings.append)
    tree = again.open(store.latest())
    assert [node.content for node in tree.path()] == ["one"]
    tree.add("assistant", "two")
    assert turn_texts(store, again.id) == ["one", "two"]
    assert again.first_model == "mini"
    assert warnings == []


def test_a_session_open_elsewhere_leaves_everything_as_it_was(
    store: SessionStore, recorder: SessionRecorder, warnings: list[str]
) -> None:
    recorder.tree.add("user", "one")
    other = SessionRecorder(store, warnings.append)
    other.tree.add("user", "mine")
    mine = other.id
    with pytest.raises(SessionInUseError):
        other.open(store.find(recorder.id or ""))
    other.tree.add("assistant", "still mine")
    assert turn_texts(store, mine) == ["mine", "still mine"]
    assert turn_texts(store, recorder.id) == ["one"]


def test_a_fork_has_a_session_of_its_own(store: SessionStore, recorder: SessionRecorder) -> None:
    recorder.tree.add("user", "one")
    first = recorder.id
    tree = recorder.start(recorder.tree.fork(), "other")
    assert tree is recorder.tree
    tree.add("assistant", "two")
    assert turn_texts(store, first) == ["one"]
    assert turn_texts(store, recorder.id) == ["one", "two"]
    assert store.find("other").id == recorder.id
    store.open(first or "")[0].close()


def test_without_saving_a_session_is_read_and_left_alone(
    store: SessionStore, recorder: SessionRecorder, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWCHAT_SESSIONS", str(store.folder))
    recorder.tree.add("user", "one")
    tree = SessionRecorder(None, warnings.append).open(store.latest())
    tree.add("assistant", "two")
    assert turn_texts(store, recorder.id) == ["one"]
    assert len(store.entries()) == 1


def test_a_session_name_taken_by_another_process_is_not_used_twice(store: SessionStore, warnings: list[str]) -> None:
    first, second = (SessionRecorder(store, warnings.append) for _ in range(2))
    for recorder in (first, second):
        recorder.start(name="seas")
        recorder.tree.add("user", "one")
        recorder.close()
    names = {entry.id: entry.name for entry in store.entries()}
    assert sorted(names.values()) == ["", "seas"]
    other = next(session for session, name in names.items() if not name)
    assert warnings == [f"another process created a session seas: this one is {other}, without a name"]


def test_hooks_are_called_while_the_session_is_open(
    store: SessionStore, recorder: SessionRecorder, warnings: list[str]
) -> None:
    visits: list[tuple[str, Path]] = []

    def leaving(folder: Path) -> None:
        visits.append(("leave", folder))
        with pytest.raises(SessionInUseError):
            store.open(folder.name)

    recorder.tree.add("user", "one")
    folder = store.folder / (recorder.id or "")
    recorder.on_close.append(leaving)
    recorder.on_open.append(lambda folder: visits.append(("open", folder)))
    recorder.close()
    recorder.close()
    recorder.open(store.latest())
    recorder.start()
    recorder.close()
    assert visits == [("leave", folder), ("open", folder), ("leave", folder)]


def test_a_full_disk_is_reported_once_and_writing_is_retried(
    store: SessionStore, recorder: SessionRecorder, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.tree.add("user", "one")
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    recorder.tree.add("assistant", "two")
    recorder.tree.add("user", "three")
    recorder.flush()
    assert warnings == [
        f"session {recorder.id} cannot be saved: No space left on device; "
        "the chat continues, and saving is retried after every turn"
    ]
    monkeypatch.setattr(os, "write", real)
    recorder.flush()
    assert turn_texts(store, recorder.id) == ["one", "two", "three"]


def test_a_folder_that_cannot_be_created_is_reported_once_and_retried(tmp_path: Path, warnings: list[str]) -> None:
    (tmp_path / "file").write_text("")
    store = SessionStore(tmp_path / "file")
    recorder = SessionRecorder(store, warnings.append)
    recorder.tree.add("user", "one")
    recorder.tree.add("assistant", "two")
    assert warnings == [
        f"sessions cannot be saved in {tmp_path}/file: File exists; "
        "the chat continues, and saving is retried after every turn"
    ]
    (tmp_path / "file").unlink()
    recorder.flush()
    assert turn_texts(store, recorder.id) == ["one", "two"]


def test_damaged_lines_are_reported(store: SessionStore, recorder: SessionRecorder, warnings: list[str]) -> None:
    recorder.tree.add("user", "one")
    recorder.close()
    with (store.folder / store.latest().id / "session.jsonl").open("a") as file:
        file.write("nonsense\n")
    recorder.open(store.latest())
    assert warnings == [f"session {recorder.id}: skipped 1 damaged line"]


def test_another_model_is_reported(store: SessionStore, recorder: SessionRecorder) -> None:
    recorder.tree.add("user", "one")
    assert recorder.set_model("big", "89ef") is None
    recorder.tree.add("assistant", "two", model="0123abcd")
    assert recorder.set_model("mini", "0123abcd") is None
    recorder.close()
    recorder.open(store.latest())
    assert recorder.set_model("big", "89ef") == (
        "the last reply came from another model (mini): big evaluates the conversation again"
    )


def test_nothing_is_saved_without_a_store(warnings: list[str]) -> None:
    recorder = SessionRecorder(None, warnings.append)
    recorder.tree.add("user", "one")
    recorder.flush()
    recorder.close()
    assert (recorder.id, recorder.folder, warnings) == (None, None, [])
