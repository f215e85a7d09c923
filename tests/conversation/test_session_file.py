"""Session files: written completely, read partially, never damaged by their content."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwchat.conversation import session_file
from qwchat.conversation.session_file import SessionContent, SessionFile, SessionHeader, parse_session, read_session
from qwchat.conversation.tree import Event, Tree
from qwchat.errors import SessionError, SessionInUseError
from tests.clocks import cost_growth
from tests.tiers import count

HEADER = SessionHeader("3f9a1c20", "2026-11-24T02:03:04+00:00", "mini", "0123abcd", "seas")


def node(number: int, parent: int | None, content: str, **more: object) -> Event:
    role = "assistant" if number % 2 == 0 else "user"
    return {"node": {"id": number, "parent": parent, "role": role, "content": content, **more}}


def make_session(folder: Path, *events: Event) -> Path:
    """Write a session with these events and return its folder."""
    folder.mkdir()
    file = SessionFile.create(folder, SessionHeader(folder.name, HEADER.created, "mini", "0123abcd"))
    file.append(events)
    file.sync()
    file.close()
    return folder


def contents(content: SessionContent) -> list[str]:
    return [turn.content for turn in content.tree.path()]


def test_events_survive_a_round_trip(tmp_path: Path) -> None:
    events = [{"title": "Seas"}, {"system": "Be brief."}, node(1, None, "Name a sea."), node(2, 1, "北海 🌊\n", seed=7)]
    folder = make_session(tmp_path / "3f9a1c20", *events)
    content = read_session(folder)
    assert content.header == SessionHeader("3f9a1c20", HEADER.created, "mini", "0123abcd")
    assert content.tree.title == "Seas"
    assert content.tree.system == "Be brief."
    assert contents(content) == ["Name a sea.", "北海 🌊\n"]
    assert content.tree.nodes[1].seed == 7
    assert content.invalid_lines == 0
    data = (folder / "session.jsonl").read_bytes()
    assert data.startswith(b'{"format": "qwchat session", "version": 1, "id": "3f9a1c20", "created": ')
    assert content.complete_bytes == len(data)


def test_only_the_owner_may_read_a_session(tmp_path: Path) -> None:
    folder = make_session(tmp_path / "a1")
    assert stat.S_IMODE((folder / "session.jsonl").stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == ["session.jsonl"]


@pytest.mark.parametrize("torn", [b'{"node": {"id": 3, "par', b"\0\0\0\0", b'{"head": 1}'])
def test_an_incomplete_line_is_ignored_and_removed_by_the_next_writer(tmp_path: Path, torn: bytes) -> None:
    folder = make_session(tmp_path / "a1", node(1, None, "one"), node(2, 1, "two"))
    path = folder / "session.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert contents(read_session(folder)) == ["one", "two"]
    assert path.read_bytes() == whole + torn
    file, content = SessionFile.reopen(folder)
    assert path.read_bytes() == whole
    assert contents(content) == ["one", "two"]
    file.append([node(3, 2, "three")])
    file.close()
    assert contents(read_session(folder)) == ["one", "two", "three"]


def test_a_session_is_locked_for_writing_but_can_be_read(tmp_path: Path) -> None:
    folder = make_session(tmp_path / "a1", node(1, None, "one"))
    file, _ = SessionFile.reopen(folder)
    with pytest.raises(SessionInUseError) as caught:
        SessionFile.reopen(folder)
    assert str(caught.value) == ("session a1 is open in another qwchat: close it there, or choose another session")
    assert contents(read_session(folder)) == ["one"]
    file.close()
    SessionFile.reopen(folder)[0].close()


def test_a_newer_version_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    folder = make_session(tmp_path / "a1", node(1, None, "one"))
    path = folder / "session.jsonl"
    data = path.read_bytes().replace(b'"version": 1', b'"version": 2') + b'{"torn'
    path.write_bytes(data)
    for opening in (read_session, SessionFile.reopen):
        with pytest.raises(SessionError) as caught:
            opening(folder)
        assert str(caught.value) == (
            "session a1 was written by a newer qwchat (format 2, this one supports 1): update qwchat to open it"
        )
    assert path.read_bytes() == data


HOSTILE = [
    b"",
    b"\n",
    b"null",
    b"[" * 100_000,
    b'{"node": ' * 50_000,
    b"{" + b" " * 3_000_000,
    b'{"head": 1' + b"0" * 5_000 + b"}",
    b'{"head": 9}',
    b'{"head": true}',
    b'{"head": [1]}',
    b'{"title": 7}',
    b'{"title": "\\ud800"}',
    b'{"system": {}}',
    b'{"dropped": [7]}',
    b'{"dropped": "all"}',
    b'{"unknown": 1}',
    b'{"head": 1, "title": "x"}',
    b'{"node": 7}',
    b'{"node": {"id": 2, "parent": 2, "role": "assistant", "content": "loop"}}',
    b'{"node": {"id": 2, "parent": 3, "role": "assistant", "content": "forward"}}',
    b'{"node": {"id": 1, "parent": null, "role": "user", "content": "again"}}',
    b'{"node": {"id": 2, "parent": 1, "role": "system", "content": "obey"}}',
    b'{"node": {"id": 2, "parent": 1, "role": "assistant", "content": 7}}',
    b'{"node": {"id": 2, "parent": 1, "role": "assistant", "content": "x", "token_ids": [-1]}}',
    b'{"node": {"id": 2, "parent": 1, "role": "assistant", "content": "x", "token_ids": [1e400]}}',
    b'{"node": {"id": 2, "parent": 1, "role": "assistant", "content": "x", "settings": [NaN]}}',
    b'{"node": {"id": 2, "parent": 1, "role": "assistant", "content": "x", "more": 1}}',
    b"\xff\xfe",
]


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_invalid_lines_are_counted_and_skipped(tmp_path: Path, line: bytes) -> None:
    folder = make_session(tmp_path / "a1", node(1, None, "one"))
    path = folder / "session.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n")
    content = read_session(folder)
    assert contents(content) == ["one"]
    assert content.invalid_lines == len((line + b"\n").split(b"\n")) - 1
    file, _ = SessionFile.reopen(folder)
    file.append([node(2, 1, "two")])
    file.close()
    assert contents(read_session(folder)) == ["one", "two"]


@pytest.mark.parametrize(
    "data",
    [b"hello", b"hello\n", b"{}\n", b"[]\n", b'{"format": "qwchat session", "version": "1"}\n', b"\0" * 64, b"\n\n"],
)
def test_other_files_are_refused_and_left_unchanged(tmp_path: Path, data: bytes) -> None:
    folder = tmp_path / "a1"
    folder.mkdir()
    (folder / "session.jsonl").write_bytes(data)
    for opening in (read_session, SessionFile.reopen):
        with pytest.raises(SessionError) as caught:
            opening(folder)
        assert str(caught.value) == (
            "session a1 is damaged (its first line is not a session header): qwchat sessions rm a1 removes it"
        )
    assert (folder / "session.jsonl").read_bytes() == data


def test_an_incomplete_header_means_an_empty_session(tmp_path: Path) -> None:
    folder = make_session(tmp_path / "a1")
    path = folder / "session.jsonl"
    path.write_bytes(path.read_bytes()[:40])
    assert read_session(folder).header is None
    with pytest.raises(SessionError, match=r"session a1 is empty, .* qwchat sessions rm a1 removes it"):
        SessionFile.reopen(folder)
    assert len(path.read_bytes()) == 40


def test_the_id_comes_from_the_folder(tmp_path: Path) -> None:
    folder = make_session(tmp_path / "a1")
    path = folder / "session.jsonl"
    header = {"format": "qwchat session", "version": 1, "id": "../../etc", "model": ["x"], "name": "a\x1b]0;b\x07c\nd"}
    path.write_text(json.dumps(header) + "\n")
    assert read_session(folder).header == SessionHeader("a1", "", "", "", "a]0;bc d")


def linked_folder(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


def linked_file(folder: Path) -> None:
    (folder / "session.jsonl").rename(folder / "other")
    (folder / "session.jsonl").symlink_to("other")


@pytest.mark.parametrize("link", [linked_folder, linked_file])
def test_links_are_not_followed(tmp_path: Path, link: Callable[[Path], None]) -> None:
    folder = make_session(tmp_path / "a1")
    link(folder)
    for opening in (read_session, SessionFile.reopen):
        with pytest.raises(SessionError, match="session a1 is a symbolic link, which is not followed"):
            opening(folder)


def test_pipes_and_folders_are_not_session_files(tmp_path: Path) -> None:
    (tmp_path / "a1").mkdir()
    os.mkfifo(tmp_path / "a1" / "session.jsonl")
    (tmp_path / "a2" / "session.jsonl").mkdir(parents=True)
    for name in ("a1", "a2"):
        with pytest.raises(SessionError, match=rf"session {name} is damaged \(session.jsonl is not a regular file\)"):
            read_session(tmp_path / name)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    folder = make_session(tmp_path / "a1")
    os.truncate(folder / "session.jsonl", session_file.MAX_BYTES + 1)
    with pytest.raises(SessionError, match="session a1 is bigger than 256 MiB, so it is damaged"):
        read_session(folder)


def test_a_full_disk_leaves_the_file_intact_and_events_are_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_session(tmp_path / "a1", node(1, None, "one"))
    path = folder / "session.jsonl"
    whole = path.read_bytes()
    file, _ = SessionFile.reopen(folder)
    real = os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) > 40:
            return real(descriptor, data[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(SessionError) as caught:
        file.append([node(2, 1, "two")])
    assert str(caught.value) == "session a1 cannot be saved: No space left on device"
    assert path.read_bytes() == whole
    monkeypatch.setattr(os, "write", real)
    file.append([node(3, 2, "three")])
    file.close()
    assert contents(read_session(folder)) == ["one", "two", "three"]


def test_an_interrupted_write_is_repeated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_session(tmp_path / "a1", node(1, None, "one"))
    file, _ = SessionFile.reopen(folder)
    real = os.write

    def interrupted(descriptor: int, data: bytes) -> int:
        real(descriptor, data)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        file.append([node(2, 1, "two")])
    monkeypatch.setattr(os, "write", real)
    file.sync()
    file.close()
    assert contents(read_session(folder)) == ["one", "two"]
    assert read_session(folder).invalid_lines == 0


def test_a_lone_surrogate_can_be_written_and_read(tmp_path: Path) -> None:
    folder = make_session(tmp_path / "a1", node(1, None, "one"), {"title": "\ud800"})
    assert read_session(folder).invalid_lines == 1


def test_moving_the_head_along_a_deep_path_takes_linear_time() -> None:
    def read_back(depth: int) -> None:
        events = [node(number, number - 1 or None, "x") for number in range(1, depth + 1)]
        events += [{"head": 1 if number % 2 else depth} for number in range(depth)]
        data = b"".join(
            map(session_file.encode_line, [{"format": session_file.FORMAT, "version": session_file.VERSION}, *events])
        )
        tree = parse_session(data, "a1").tree
        assert (tree.head, tree.tip(None)) == (1, depth)

    assert cost_growth(read_back, 640, 8) < 24  # 64 if each move walked the path.


@st.composite
def conversations(draw: st.DrawFn) -> list[Event]:
    """Draw the events of a valid tree."""
    events: list[Event] = []
    tree = Tree(events.append)
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["add", "add", "add", "select", "title", "system", "drop"]))
        ids = [turn.id for turn in tree.nodes]
        if kind == "add":
            at = draw(st.sampled_from([None, *ids]))
            tree.add(draw(st.sampled_from(["user", "assistant"])), draw(st.text(max_size=20)), parent=at)
        elif kind == "select":
            tree.select(draw(st.sampled_from([None, *ids])))
        elif kind == "title":
            tree.set_title(draw(st.text(max_size=20)))
        elif kind == "system":
            tree.set_system(draw(st.none() | st.text(max_size=20)))
        elif ids:
            tree.drop([draw(st.sampled_from(ids))], draw(st.none() | st.text(max_size=20)))
    return events


def state(tree: Tree) -> tuple[object, ...]:
    return (tree.nodes, tree.head, tree.system, tree.title, tree.messages())


@settings(max_examples=count(150, 30))
@given(conversations(), st.floats(0, 1))
def test_a_prefix_of_a_file_is_a_prefix_of_the_session(events: list[Event], share: float) -> None:
    header = session_file.encode_line(
        {"format": session_file.FORMAT, "version": session_file.VERSION, "id": "a1", "created": ""}
    )
    lines = [header, *map(session_file.encode_line, events)]
    data = b"".join(lines)
    cut = data[: round(share * len(data))]
    content = parse_session(cut, "a1")
    complete = cut.count(b"\n")
    assert content.complete_bytes == sum(map(len, lines[:complete]))
    assert content.invalid_lines == 0
    assert (content.header is None) == (complete == 0)
    assert state(content.tree) == state(Tree.replay(json.loads(json.dumps(events[: max(complete - 1, 0)]))))


@settings(max_examples=count(150, 30))
@given(conversations(), st.data())
def test_any_damage_is_survived(events: list[Event], data: st.DataObject) -> None:
    whole = session_file.encode_line(
        {"format": session_file.FORMAT, "version": session_file.VERSION, "id": "a1", "created": ""}
    )
    whole += b"".join(map(session_file.encode_line, events))
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    damaged = whole[:start] + data.draw(st.binary(max_size=30)) + whole[end:]
    try:
        content = parse_session(damaged, "a1")
    except SessionError:
        return
    assert len(content.tree.nodes) + content.invalid_lines <= damaged.count(b"\n")
