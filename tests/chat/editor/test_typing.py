"""Typing at the prompt, in a pseudo-terminal."""

from __future__ import annotations

import json
import shlex
import stat
import sys
from pathlib import Path

import pytest

from tests.chat.pty import Terminal

PASTE = "\n".join(f"line {number} of the paste" for number in range(1, 501))

ROOMY = {"replies": ["ok"], "context_size": 20_000}


def pasted(text: str) -> str:
    """Return the keys of a terminal that pastes `text`."""
    return f"\x1b[200~{text}\x1b[201~"


def sent_messages(terminal: Terminal, file: Path) -> list[str]:
    """Return the messages sent so far, read from a transcript."""
    terminal.type(f"/save {file}\r")
    terminal.wait(f"saved to {file}")
    terminal.prompt()
    return [turn["content"] for turn in json.loads(file.read_text())["messages"] if turn["role"] == "user"]


def editor_environment(folder: Path, program: str) -> dict[str, str]:
    """Return an environment whose $EDITOR runs `program`: Python that changes `text`, the contents of the file."""
    script = folder / "editor.py"
    script.write_text(
        "import pathlib, sys\npath = pathlib.Path(sys.argv[-1])\ntext = path.read_text()\n"
        f"{program}\npath.write_text(text)\n"
    )
    return {"VISUAL": f"{shlex.quote(sys.executable)} {shlex.quote(str(script))} --wait", "EDITOR": "false"}


@pytest.mark.slow
@pytest.mark.parametrize("keys", ["\x1b\r", "\n", "\x1b[13;2u", "\x1b[27;2;13~"])
def test_keys_that_add_a_line(keys: str, tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type(f"one{keys}two\r")
        terminal.wait("> one\n  two\necho: one\ntwo")


@pytest.mark.slow
def test_a_paste_of_500_lines_is_folded_and_sent_whole(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path, **ROOMY) as terminal:
        terminal.prompt()
        terminal.type("read: " + pasted(PASTE.replace("\n", "\r\n")) + " and " + pasted("x" * 1000))
        terminal.wait("> read: [Pasted text #1 +500 lines] and [Pasted text #2 +1,000 characters]")
        terminal.type("\r")
        terminal.wait("characters]\nok")
        assert sent_messages(terminal, tmp_path / "talk.json") == [f"read: {PASTE} and {'x' * 1000}"]


@pytest.mark.slow
def test_small_pastes_are_shown_and_backspace_deletes_a_whole_fold(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("a " + pasted(PASTE))
        terminal.wait("> a [Pasted text #1 +500 lines]")
        terminal.type("\x7f" + pasted("b\r\tc"))
        terminal.wait("> a b\n      c")
        terminal.type("\r")
        terminal.wait("\necho: a b\n")


@pytest.mark.slow
def test_a_slash_or_quotes_in_a_paste_are_text(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type(pasted("/quit\r") + "\r")
        terminal.wait("> //quit", "echo: /quit")
        terminal.prompt()
        terminal.type(pasted('"""A docstring."""\rx = 1') + "\r")
        terminal.wait("> [Pasted text #1 +2 lines]", 'echo: """A docstring."""\nx = 1')
        terminal.prompt()
        terminal.type(pasted("/quit\n" * 20) + "\r")
        terminal.wait("> [Pasted text #2 +20 lines]", "echo: /quit\n/quit")


@pytest.mark.slow
def test_triple_quotes_hold_a_message_of_several_lines(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type('"""\r/set is no\r\r')
        terminal.wait_until(lambda: terminal.toolbar.startswith('""" and Enter send'), "the toolbar to say how it ends")
        terminal.type('command here\r"""\r')
        terminal.wait('> """\n  /set is no\n\n  command here\n  """\necho: /set is no\n\ncommand here')


@pytest.mark.slow
def test_pastes_are_folded_again_from_the_history_of_another_chat(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path, **ROOMY) as terminal:
        terminal.prompt()
        terminal.type("sum up " + pasted("/quit\n" + PASTE) + "\r")
        terminal.wait("\nok")
        terminal.prompt()
        terminal.type("\x1b[A")
        terminal.wait("ok\n\n> sum up [Pasted text #1 +501 lines]")
    with Terminal("chat", "-q", models=tmp_path, **ROOMY) as terminal:
        terminal.prompt()
        terminal.type(pasted("y\n" * 30) + "\r")
        terminal.wait("\nok")
        terminal.prompt()
        terminal.type("\x1b[A\x1b[A")
        terminal.wait("ok\n\n> sum up [Pasted text #2 +501 lines]")
        terminal.type("!\r")
        terminal.wait("lines]!\nok")
        assert sent_messages(terminal, tmp_path / "talk.json")[1] == f"sum up /quit\n{PASTE}!"


def test_the_external_editor_gets_pastes_in_full_and_they_are_folded_again(tmp_path: Path) -> None:
    program = "assert text.count('line ') == 501, text\ntext = 'Please ' + text.rstrip() + ' and more\\n'"
    with Terminal("chat", "-q", models=tmp_path, variables=editor_environment(tmp_path, program), **ROOMY) as terminal:
        terminal.prompt()
        terminal.type("line up " + pasted(PASTE))
        terminal.wait("> line up [Pasted text #1 +500 lines]")
        terminal.type("\x18\x05")
        terminal.wait("> Please line up [Pasted text #1 +500 lines] and more")
        terminal.type("\r")
        terminal.wait("\nok")
        assert sent_messages(terminal, tmp_path / "talk.json") == [f"Please line up {PASTE} and more"]


def test_an_editor_that_fails_leaves_the_message(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path, variables={"VISUAL": "", "EDITOR": "false"}) as terminal:
        terminal.prompt()
        terminal.type("my text\x18\x05")
        terminal.wait("qwchat: error: false failed with exit code 1: the message is unchanged\n> my text")
        terminal.type("!\r")
        terminal.wait("echo: my text!")


def test_history_is_searched(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path) as terminal:
        for message in ("the Quick brown fox", "a lazy dog", "another"):
            terminal.prompt()
            terminal.type(f"{message}\r")
            terminal.wait(f"echo: {message}")
        terminal.prompt()
        terminal.type("\x12quick")
        terminal.wait("echo: another\n\n> the Quick brown fox")
        terminal.type("\r")
        terminal.wait_until(lambda: "I-search" not in terminal.text, "the search to end")
        terminal.type("\x05!\r")
        terminal.wait("echo: the Quick brown fox!")


@pytest.mark.slow
def test_a_search_finds_text_inside_a_paste(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path, **ROOMY) as terminal:
        terminal.prompt()
        terminal.type(pasted(PASTE) + "\r")
        terminal.wait("\nok")
        terminal.prompt()
        terminal.type("\x12line 250 of")
        terminal.wait("line 250 of the paste")
        terminal.type("\r")
        terminal.wait("ok\n\n> [Pasted text #1 +500 lines]")


@pytest.mark.slow
def test_up_moves_through_lines_before_the_history(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("before\r")
        terminal.wait("echo: before")
        terminal.prompt()
        terminal.type("one\ntwo\x1b[AX")
        terminal.wait("> oneX\n  two")
        terminal.type("\x1b[A")
        terminal.wait("echo: before\n\n> before")
        terminal.type("\x1b[B")
        terminal.wait("> oneX\n  two")


def test_earlier_input_is_suggested(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("tell me a story\r")
        terminal.wait("echo: tell me a story")
        terminal.prompt()
        terminal.type("tell")
        terminal.wait("> tell me a story")
        terminal.type("\x1b[C\r")
        terminal.wait("> tell me a story\necho: tell me a story\n\n>")


@pytest.mark.slow
def test_a_discarded_input_comes_back(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("a long thought\x03")
        terminal.wait("press Ctrl-D or type /quit to leave")
        terminal.prompt()
        terminal.type("\x1b[A!\r")
        terminal.wait("echo: a long thought!")


def test_completion_is_fuzzy_and_shows_what_commands_do(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("/s")
        terminal.wait("/system", "/set", "show or change the system prompt")
        terminal.type("yem\t")
        terminal.wait("> /system")
        terminal.type("\x15/set pty\t")
        terminal.wait("> /set ")
        terminal.type("\x15plain text\t\r")
        terminal.wait("echo: plain text")


def test_the_toolbar_lists_keys(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.wait_until(lambda: bool(terminal.toolbar), "the toolbar")
        assert terminal.toolbar.startswith("Enter sends · Alt-Enter adds a line · Ctrl-R searches · /help")
        terminal.type("\x04")
        assert terminal.end() == 0
        assert "Enter sends" not in "\n".join(terminal._lines())


@pytest.mark.slow
def test_wide_characters(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("日本語 e\u0301 🎉x\x7f\x7f\x7f\x1b[D\x1b[Dy")
        terminal.wait("> 日本語 y\u00e9")
        terminal.type("\r")
        terminal.wait("echo: 日本語 y\u00e9")


def at_shell_prompt(terminal: Terminal) -> None:
    """Read until the shell of a terminal waits for a command."""
    terminal.wait_until(lambda: terminal.text.endswith("\n$"), "the shell")


@pytest.mark.slow
def test_ctrl_z_suspends_and_keeps_the_draft(tmp_path: Path) -> None:
    from tests.cli.runs import FAKE

    shell = ["/bin/bash", "--norc", "--noediting", "-i"]
    with Terminal(models=tmp_path, command=shell, variables={"PS1": "$ "}) as terminal:
        terminal.wait("$")
        terminal.type(f"{shlex.quote(sys.executable)} {shlex.quote(str(FAKE))} chat -q\r")
        terminal.prompt()
        terminal.type("half a thought\x1a")
        terminal.wait("Stopped")
        at_shell_prompt(terminal)  # Keys that come earlier are echoed before the prompt.
        terminal.type("echo out; fg\r")
        terminal.wait("\nout\n")
        terminal.wait_until(lambda: terminal.text.endswith("> half a thought"), "the draft")
        terminal.type(", whole\r")
        terminal.wait("echo: half a thought, whole")
        terminal.prompt()
        terminal.type("\x04")
        at_shell_prompt(terminal)
        terminal.type("stty -a | grep -c ' echo ' ; exit\r")
        terminal.end()
        assert terminal.text.splitlines()[-2:] == ["1", "exit"]


def test_the_history_file_is_private(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("secret\r")
        terminal.wait("echo: secret")
    for file in (tmp_path / "home" / "qwchat").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
