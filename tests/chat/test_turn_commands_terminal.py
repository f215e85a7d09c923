"""Stop, continue, undo and edit, as the user sees it in a pseudo-terminal."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.chat.pty import Terminal

WORDS = " ".join(f"word{number}" for number in range(40))


@pytest.mark.slow
def test_a_stopped_reply_continues(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path, replies=[WORDS], token_seconds=0.05) as terminal:
        terminal.prompt()
        terminal.type("count\r")
        terminal.wait("word5")
        terminal.type("\x03")
        terminal.prompt()
        before = terminal.text
        assert "word39" not in before
        terminal.type("/continue\r")
        terminal.wait("word39")
        terminal.prompt()
        shown = [line for line in terminal.text.splitlines() if not line.startswith((">", "qwchat", "stopped"))]
        assert "".join("".join(shown).split()) == WORDS.replace(" ", "")
        terminal.type("/continue\r")
        terminal.wait("qwchat: error: the reply is complete: ask for more, or")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.slow
def test_a_chat_ended_by_a_signal_keeps_its_turns(tmp_path: Path, number: signal.Signals) -> None:
    with Terminal("chat", models=tmp_path, replies=[WORDS], token_seconds=0.05) as terminal:
        terminal.prompt()
        terminal.type("count\r")
        terminal.wait("word5")
        terminal.process.kill(number)
        assert terminal.end() == 130
    with Terminal("chat", "-q", "--continue", models=tmp_path, replies=[WORDS]) as terminal:
        terminal.prompt()
        assert "word5" in terminal.text
        assert "word39" not in terminal.text
        terminal.type("/continue\r")
        terminal.wait("word39")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_chat_ended_at_its_prompt_restores_the_terminal(tmp_path: Path, number: signal.Signals) -> None:
    with Terminal("chat", "-q", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("unfinished")
        terminal.wait("> unfinished")
        terminal.wait_until(lambda: bool(terminal.toolbar), "the toolbar")
        terminal.process.kill(number)
        assert terminal.end() == 0
        assert terminal.text == "> unfinished"
        assert not terminal.toolbar
        assert terminal.raw.rindex(b"\x1b[?2004l") > terminal.raw.rindex(b"\x1b[?2004h")


def test_a_chat_whose_terminal_is_closed_at_its_prompt_ends(tmp_path: Path) -> None:
    with Terminal("chat", models=tmp_path, replies=["Fine."]) as terminal:
        terminal.prompt()
        terminal.type("hello\r")
        terminal.wait("Fine.")
        terminal.prompt()
        assert terminal.hang_up() == 0


@pytest.mark.slow
def test_closing_the_terminal_loses_no_turn(tmp_path: Path) -> None:
    with Terminal("chat", models=tmp_path, replies=[WORDS], token_seconds=0.05) as terminal:
        terminal.prompt()
        terminal.type("count\r")
        terminal.wait("word5")
        terminal.hang_up()
    with Terminal("chat", "-q", "--continue", models=tmp_path, replies=[WORDS]) as terminal:
        terminal.prompt()
        assert "word5" in terminal.text


def test_a_stopped_code_block_is_still_a_code_block(tmp_path: Path) -> None:
    reply = "See:\n\n```py\none = 1\ntwo = 2\nthree = 3\n```\n\nThat is **it**."
    with Terminal("chat", "-q", "--max-tokens", "6", models=tmp_path, replies=[reply]) as terminal:
        terminal.prompt()
        terminal.type("code?\r")
        terminal.wait("one = 1")
        terminal.prompt()
        terminal.type("/set max-tokens none\r")
        terminal.prompt()
        terminal.type("/continue\r")
        terminal.wait("That is it.")
        terminal.prompt()
        assert [line for line in terminal.text.splitlines() if not line.startswith((">", "max"))] == [
            "See:",
            "",
            "── 1 · py",
            "one = 1",
            "two",
            "",
            " = 2",
            "three = 3",
            "──",
            "",
            "That is it.",
            "",
        ]


def test_remedies_in_notices_work(tmp_path: Path) -> None:
    with Terminal("chat", "--max-tokens", "3", models=tmp_path, replies=["a b c d e"]) as terminal:
        terminal.prompt()
        terminal.type("spell\r")
        terminal.wait("the reply was cut off at max-tokens 3; /continue resumes it")
        terminal.prompt()
        terminal.type("/continue\r")
        terminal.wait("6 prompt tokens (1 new)", "ctx 8/2,048")
        terminal.prompt()
        terminal.type("/undo\r")
        terminal.wait("undid “spell”; /redo restores it")


def test_a_question_is_edited_in_place(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("how are yuo?\r")
        terminal.wait("echo: how are yuo?")
        terminal.prompt()
        terminal.type("/edit\r")
        terminal.wait("> /edit 1 how are yuo?")
        terminal.type("\x7f" * 4 + "you?\r")
        terminal.wait("echo: how are you?")
        terminal.prompt()
        terminal.type("/alt\r")
        terminal.wait("message 1 of 2: how are yuo?\necho: how are yuo?\n\n>")
        terminal.prompt()
        terminal.type("/edit --reply\r")
        terminal.wait("> /edit --reply 1 echo: how are yuo?")
