"""Editing modes, the bell, and input without a line editor, in a pseudo-terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chat.pty import Terminal


@pytest.mark.slow
def test_vi(tmp_path: Path) -> None:
    with Terminal("chat", "-q", "--editing-mode", "vi", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("one two three\x1b")
        terminal.wait_until(lambda: "vi: normal · ctx 0/2k" in terminal.toolbar, "the mode in the toolbar")
        terminal.type("0cetwo\x1b")
        terminal.wait("> two two three")
        terminal.type("$x\r")
        terminal.wait("echo: two two thre")
        terminal.prompt()
        terminal.type("four\x1b\rfive\r")
        terminal.wait("echo: four\nfive")
        terminal.prompt()
        terminal.type("\x12two t")
        terminal.wait("five\n\n> two two thre")


def test_the_editing_mode_can_be_changed(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("/set editing-mode vi\r")
        terminal.wait("editing-mode vi")
        terminal.prompt()
        terminal.type("ab\x1b")
        terminal.wait_until(lambda: "vi: normal" in terminal.toolbar, "the mode in the toolbar")
        terminal.type("x\r")
        terminal.wait("\necho: a\n")


@pytest.mark.slow
def test_the_bell_rings_after_a_slow_reply_only(tmp_path: Path) -> None:
    with Terminal("chat", "--bell", "100000", models=tmp_path, replies=["a b c d e"], token_seconds=0.3) as terminal:
        terminal.prompt()
        terminal.type("quick\r")
        terminal.wait("a b c d e\n0.12 s")
        terminal.prompt()
        assert b"\x07" not in terminal.raw
        terminal.type("/set bell 1\r")
        terminal.wait("/set bell 1\nbell")
        terminal.type("slow\r")
        terminal.wait("> slow\na b c d e\n0.12 s")
        terminal.prompt()
        assert terminal.raw.count(b"\x07") == 1
        terminal.type("/set bell off\r")
        terminal.wait("/set bell off\nbell")
        terminal.type("and slow\r")
        terminal.wait("> and slow\na b c d e\n0.12 s")
        terminal.prompt()
        assert terminal.raw.count(b"\x07") == 1


def test_no_suggestions_without_dim_text(tmp_path: Path) -> None:
    with Terminal("chat", "-q", "--color", "never", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("tell me a story\r")
        terminal.wait("echo: tell me a story")
        terminal.prompt()
        terminal.type("tell\x1b[C\r")
        terminal.wait("echo: tell\n\n>")
        assert b"\x1b[2m" not in terminal.raw


def test_a_dumb_terminal_accepts_blocks_and_continued_lines(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path, variables={"TERM": "dumb"}) as terminal:
        terminal.wait_until(lambda: terminal.text.endswith(">"), "the prompt")
        terminal.type("one \\\r")
        terminal.wait_until(lambda: terminal.raw.endswith(b"\r\n  "), "the prompt of a continuation line")
        terminal.type("two\r")
        terminal.wait("> one \\\n  two\necho: one\ntwo\n\n>")
        for line in ('"""', "/quit", '"""'):
            terminal.wait_until(lambda: terminal.raw.endswith((b"> ", b"\r\n  ")), "the sign of a line")
            terminal.type(line + "\r")
            terminal.wait(line)
        terminal.wait('> """\n  /quit\n  """\necho: /quit\n\n>')
        terminal.type("\x03")
        terminal.wait("press Ctrl-D or type /quit to leave")
        assert b"\x1b" not in terminal.raw
