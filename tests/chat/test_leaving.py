"""Leaving the chat, the hint to resume it, and the blank lines between turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwchat.conversation.session_store import SessionStore
from tests.chat.pty import Terminal
from tests.chat.test_resume import save
from tests.cli.runs import call

FIGURES = "0.12 s to first token · "


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore(tmp_path / "home" / "sessions")


def leave(terminal: Terminal, *inputs: str) -> list[str]:
    """Type each of `inputs` at a prompt. Return the lines on the screen when the process has ended."""
    for typed in inputs:
        terminal.prompt()
        terminal.type(typed)
    assert terminal.end() == 0
    return terminal.text.splitlines()


@pytest.mark.parametrize("typed", ["/quit\r", "/exit\r", "/bye\r", "/q\r", "exit\r", "quit \r", "\x04"])
def test_ways_out(typed: str, tmp_path: Path) -> None:
    with Terminal("chat", "--no-save", models=tmp_path) as terminal:
        lines = leave(terminal, "hello\r", typed)
        assert lines[1:3] == ["> hello", "echo: hello"]
        assert lines[3].startswith(FIGURES)
        assert lines[4:] == ["", f"> {typed.strip()}".rstrip("\x04 ")]


def test_the_words_are_messages_in_a_sentence_in_quotes_and_in_a_pipe(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path) as terminal:
        for typed, answer in (("exit now\r", "echo: exit now"), ('"""\rquit\r"""\r', "echo:  quit")):
            terminal.prompt()
            terminal.type(typed)
            terminal.wait(answer)
    piped = call("chat", "-q", models=tmp_path, stdin=b"one\nexit\ntwo\n")
    assert piped.stdout == b"echo: one\necho: exit\necho: two\n"
    assert piped.stderr == b""


def test_leaving_says_how_to_resume_the_session(tmp_path: Path, store: SessionStore) -> None:
    with Terminal("chat", models=tmp_path) as terminal:
        assert leave(terminal, "one\r", "\x04")[-2:] == [">", "to continue: qwchat -c"]
        assert b"\x1b[2mto continue: qwchat -c\x1b[0m\r\n" in terminal.raw
    first = store.latest().id
    with Terminal("chat", "--session", "two words", models=tmp_path) as terminal:
        assert leave(terminal, "one\r", "exit\r")[-1] == "to continue: qwchat --resume 'two words'"
    with Terminal("chat", "--resume", first, models=tmp_path) as terminal:
        # The new session has no message, so the other one is still the latest.
        assert leave(terminal, "/quit\r")[-1] == f"to continue: qwchat --resume {first}"
    for command in ("-c", f"--resume={first}", "--resume=two words"):
        assert call(*command.split("=", 1), "-p", "two", models=tmp_path).returncode == 0


def test_no_hint_without_a_saved_session_or_a_reader(tmp_path: Path, store: SessionStore) -> None:
    with Terminal("chat", models=tmp_path) as terminal:
        assert leave(terminal, "/set temp 1\r", "\x04")[1:] == ["> /set temp 1", "temp 1", ">"]
    with Terminal("chat", "--no-save", models=tmp_path) as terminal:
        assert leave(terminal, "one\r", "\x04")[-1] == ">"
    with Terminal("chat", "-q", models=tmp_path) as terminal:
        assert leave(terminal, "one\r", "\x04") == ["> one", "echo: one", "", ">"]
    assert "go on" not in call("chat", models=tmp_path, stdin=b"one\n").stderr.decode()
    with Terminal("chat", models=tmp_path, variables={"TERM": "dumb"}) as terminal:
        terminal.wait_until(lambda: terminal.text.endswith(">"), "the prompt")
        terminal.type("one\r")
        terminal.wait_until(lambda: terminal.text.endswith("\n\n>"), "the prompt")
        terminal.type("\x04")
        assert terminal.end() == 0
        assert terminal.text.splitlines()[-2:] == [">", "to continue: qwchat -c"]


def test_blank_lines_separate_turns_and_appear_nowhere_else(tmp_path: Path, store: SessionStore) -> None:
    entry = save(store, "Name a sea.", "The Pacific.", name="seas")
    with Terminal("chat", "-q", models=tmp_path, replies=["One.", "Two."]) as terminal:
        lines = leave(
            terminal,
            "first\r",
            "\r",
            "/set temp 1\r",
            "second\r",
            "/alt\r",
            "/retry\r",
            "/alt\r",
            "/resume seas\r",
            "/quit\r",
        )
    assert lines == [
        "> first", "One.", "",
        ">",
        "> /set temp 1", "temp 1",
        "> second", "Two.", "",
        "> /alt", "qwchat: error: there are no alternatives yet: /retry and /edit create them",
        "> /retry", "One.", "",
        "> /alt", "reply 1 of 2", "Two.", "",
        "> /resume seas", f"resumed {entry.id} (seas · Name a sea.), 2 messages", "> Name a sea.", "The Pacific.", "",
        "> /quit",
    ]  # fmt: skip
    with Terminal("chat", "--resume", "seas", "-q", models=tmp_path) as terminal:
        assert leave(terminal, "/quit\r")[-4:] == ["> Name a sea.", "The Pacific.", "", "> /quit"]


def test_one_blank_line_follows_a_stopped_reply(tmp_path: Path) -> None:
    slow = " ".join(f"word{number}" for number in range(200))
    with Terminal("chat", models=tmp_path, replies=[slow], token_seconds=0.05) as terminal:
        terminal.prompt()
        terminal.type("count\r")
        terminal.wait("word3")
        terminal.type("\x03")
        terminal.wait("stopped; ")
        terminal.prompt()
        stop, figures, *rest = terminal.text.splitlines()[-4:]
        assert stop.startswith("stopped; ")
        assert figures.startswith(FIGURES)
        assert rest == ["", ">"]
