"""`qwchat sessions` lists, shows, searches, removes and exports sessions."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwchat.conversation.session_store import SessionStore
from qwchat.conversation.tree import Tree
from tests.chat.pty import Terminal
from tests.cli.runs import call, run

SAID_AT = 1_795_485_780  # 2026-11-24 02:03 UTC


@pytest.fixture(autouse=True)
def _clock() -> Iterator[None]:
    """Set the local time zone to UTC."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    """Create two sessions: "sums", and an older one about seas."""
    store = SessionStore(tmp_path / "home" / "sessions")
    _save(store, "5e44", ["Name three seas.", "The **North** Sea,\nthe Red Sea …"], at=SAID_AT - 60)
    _save(store, "f397", ["What is 2+2?", "4\x1b[31m"], name="sums", at=SAID_AT)
    return store


def _save(store: SessionStore, session: str, contents: list[str], *, name: str = "", at: float) -> None:
    file = store.create("mini", "0123abcd", name)
    tree = Tree(lambda event: file.append([event]))
    for number, content in enumerate(contents):
        tree.add("assistant" if number % 2 else "user", content)
    file.close()
    os.utime(file.folder / "session.jsonl", (at, at))
    file.folder.rename(store.folder / session)


LIST = """\
id    last used         messages  model  title
f397  2026-11-24 02:03         2  mini   sums · What is 2+2?
5e44  2026-11-24 02:02         2  mini   Name three seas.
"""


@pytest.mark.parametrize("command", [("sessions",), ("sessions", "list")])
def test_the_list(tmp_path: Path, store: SessionStore, command: tuple[str, ...]) -> None:
    ran = call(*command, models=tmp_path)
    assert (ran.returncode, ran.stdout.decode(), ran.stderr) == (0, LIST, b"")


def test_the_list_as_json(tmp_path: Path, store: SessionStore) -> None:
    listed = json.loads(call("sessions", "list", "--json", models=tmp_path).stdout)
    assert listed["folder"] == str(store.folder)
    first = listed["sessions"][0]
    assert first.pop("size") > 200
    assert first.pop("created").startswith("20")
    assert first == {
        "id": "f397",
        "name": "sums",
        "title": "What is 2+2?",
        "model": "mini",
        "changed": "2026-11-24T02:03:00+00:00",
        "messages": 2,
        "trouble": "",
    }


def test_no_sessions_yet(tmp_path: Path) -> None:
    ran = call("sessions", models=tmp_path)
    assert (ran.returncode, ran.stdout) == (0, b"")
    assert ran.stderr.decode() == f"there are no sessions in {tmp_path}/home/sessions\n"


def test_show(tmp_path: Path, store: SessionStore) -> None:
    ran = call("sessions", "show", "sums", models=tmp_path)
    created = store.find("sums").created
    assert ran.stdout.decode() == (
        "session    f397\n"
        "name       sums\n"
        "title      What is 2+2?\n"
        "model      mini (0123abcd)\n"
        f"created    {created}\n"
        "last used  2026-11-24 02:03\n"
        "messages   2\n"
        f"file       {store.folder}/f397/session.jsonl\n"
        "\n# What is 2+2?\n\n## You\n\nWhat is 2+2?\n\n## mini\n\n4[U+001B][31m\n"
    )
    shown = json.loads(call("sessions", "show", "5e", "--json", models=tmp_path).stdout)
    assert shown["messages"][0]["content"] == "Name three seas."
    assert shown["id"] == "5e44"


def test_grep(tmp_path: Path, store: SessionStore) -> None:
    ran = call("sessions", "grep", "[RN]\\w+(\\*\\*)? Sea", models=tmp_path)
    assert ran.stdout.decode() == ("5e44:2:assistant: The **North** Sea,\n5e44:2:assistant: the Red Sea …\n")
    ran = call("sessions", "grep", "-i", "RED", "--json", models=tmp_path)
    assert json.loads(ran.stdout) == {
        "matches": [
            {"session": "5e44", "title": "Name three seas.", "message": 2, "role": "assistant", "line": "the Red Sea …"}
        ]
    }
    assert call("sessions", "grep", "-F", "2+2", "sums", models=tmp_path).stdout == b"f397:1:user: What is 2+2?\n"
    assert call("sessions", "grep", "31m", models=tmp_path).stdout.decode() == "f397:2:assistant: 4␛[31m\n"
    nothing = call("sessions", "grep", "Baltic", models=tmp_path)
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (1, b"", b"")


def test_grep_shows_a_part_of_a_long_line(tmp_path: Path, store: SessionStore) -> None:
    _save(store, "aa", ["x" * 5_000 + "needle" + "y" * 5_000], at=1)
    ran = call("sessions", "grep", "needle", models=tmp_path)
    assert ran.stdout.decode() == "aa:1:user: …" + "x" * 100 + "needle" + "y" * 100 + "…\n"


def test_grep_continues_after_a_damaged_session(tmp_path: Path, store: SessionStore) -> None:
    (store.folder / "f397" / "session.jsonl").write_text("hello\n")
    ran = call("sessions", "grep", "Red", models=tmp_path)
    assert ran.stdout.decode() == "5e44:2:assistant: the Red Sea …\n"
    assert ran.stderr.decode() == (
        "qwchat: error: session f397 is damaged (its first line is not a session header): "
        "qwchat sessions rm f397 removes it\n"
    )


@pytest.mark.parametrize("pattern", ["(", "a{99999999999999999999}", "(" * 9000 + ")" * 9000])
def test_grep_refuses_an_invalid_expression(tmp_path: Path, store: SessionStore, pattern: str) -> None:
    ran = call("sessions", "grep", pattern, models=tmp_path)
    assert ran.returncode == 2
    assert b"is not a regular expression" in ran.stderr
    assert len(ran.stderr) < 300


def test_grep_prints_no_warning_of_python(tmp_path: Path, store: SessionStore) -> None:
    ran = run("sessions", "grep", "[[z]", models=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, b"")  # A reply may contain an escape sequence, with a bracket.


def test_export_to_a_file_by_its_name_and_to_standard_output(tmp_path: Path, store: SessionStore) -> None:
    page = tmp_path / "talk.html"
    ran = call("sessions", "export", "seas", str(page), models=tmp_path)
    assert ran.stderr.decode() == f"qwchat: wrote 5e44 to {page}\n"
    assert "<strong>North</strong>" in page.read_text()
    again = call("sessions", "export", "seas", str(page), models=tmp_path)
    assert (again.returncode, again.stderr.decode()) == (
        2,
        f"qwchat: error: {page} already exists: choose another name, or give --force\n",
    )
    assert call("sessions", "export", "seas", str(page), "--force", "--format", "md", models=tmp_path).returncode == 0
    assert page.read_text() == call("sessions", "export", "seas", models=tmp_path).stdout.decode()
    document = json.loads(call("sessions", "export", "seas", "-", "--format", "json", models=tmp_path).stdout)
    assert document["title"] == "Name three seas."


def test_rm_asks_on_a_terminal(tmp_path: Path, store: SessionStore) -> None:
    for answer, left in (("n", ["f397", "5e44"]), ("y", ["5e44"])):
        with Terminal("sessions", "rm", "sums", models=tmp_path) as terminal:
            terminal.wait("remove it? [y/N]")
            terminal.type(f"{answer}\r")
            assert terminal.end() == 0
            lines = terminal.text.splitlines()
            assert lines[0] == "f397  sums · What is 2+2?, 2 messages"
            assert lines[-1] == ("nothing removed" if answer == "n" else "qwchat: removed f397 (sums · What is 2+2?)")
        assert [entry.id for entry in store.entries()] == left


def test_rm_without_a_terminal(tmp_path: Path, store: SessionStore) -> None:
    refused = call("sessions", "rm", "sums", models=tmp_path)
    assert (refused.returncode, refused.stderr.decode()) == (
        2,
        "qwchat: error: sessions rm needs a terminal to ask for confirmation: give --yes to remove without asking\n",
    )
    removed = call("sessions", "rm", "sums", "5e44", "f397", "--yes", models=tmp_path)
    assert removed.stderr.decode() == (
        "qwchat: removed f397 (sums · What is 2+2?)\nqwchat: removed 5e44 (Name three seas.)\n"
    )
    assert store.entries() == []


def test_rm_removes_nothing_if_one_name_is_wrong(tmp_path: Path, store: SessionStore) -> None:
    ran = call("sessions", "rm", "sums", "lakes", "--yes", models=tmp_path)
    assert (ran.returncode, ran.stderr.decode()) == (
        2,
        "qwchat: error: there is no session 'lakes': qwchat sessions list shows all sessions\n",
    )
    assert len(store.entries()) == 2


def test_an_open_session_is_not_removed(tmp_path: Path, store: SessionStore) -> None:
    file, _ = store.open("f397")
    ran = call("sessions", "rm", "sums", "--yes", models=tmp_path)
    file.close()
    assert (ran.returncode, ran.stderr.decode()) == (
        1,
        "qwchat: error: session f397 is open in another qwchat: close it there, or choose another session\n",
    )
    assert len(store.entries()) == 2


def test_messages_are_sanitised_on_a_terminal(tmp_path: Path, store: SessionStore) -> None:
    for command, shown in (
        (("show", "sums"), "4[U+001B][31m"),
        (("export", "sums"), "4[U+001B][31m"),
        (("grep", "4"), "4␛[31m"),
    ):
        with Terminal("sessions", *command, models=tmp_path) as terminal:
            assert terminal.end() == 0
            assert shown in terminal.text


def test_damaged_lines_are_reported(tmp_path: Path, store: SessionStore) -> None:
    with (store.folder / "f397" / "session.jsonl").open("a") as file:
        file.write("nonsense\n{}\n")
    ran = call("sessions", "export", "sums", models=tmp_path)
    assert ran.returncode == 0
    assert ran.stderr.decode() == "qwchat: session f397: skipped 2 damaged lines\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("grep", "("),
            "'(' is not a regular expression (missing ), unterminated subpattern at position 0): give -F",
        ),
        (("--json", "rm", "x"), "put options after 'rm'"),
        (("show",), "missing argument 'SESSION' (qwchat sessions show --help shows the options)"),
        (("unknown",), "there is no command 'unknown': qwchat sessions --help lists the commands"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    ran = call("sessions", *arguments, models=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.decode().startswith(f"qwchat: error: {message}")
