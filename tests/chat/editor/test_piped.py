"""Keys and the messages that they send, through prompt-toolkit's pipe: without a process or a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from qwchat.chat.editor import line_editor
from qwchat.chat.editor.line_editor import LineEditor
from qwchat.chat.editor.message_reader import EditingMode
from qwchat.markdown.styles import PLAIN
from tests.chat.editor.no_thoughts import NoThoughts

UP, DOWN, LEFT, ESCAPE, CTRL_R = "\x1b[A", "\x1b[B", "\x1b[D", "\x1b", "\x12"
PASTE = "\n".join(f"line {number} of the paste" for number in range(1, 501))


def pasted(text: str) -> str:
    """Return the keys of a terminal that pastes `text`."""
    return f"\x1b[200~{text}\x1b[201~"


@contextmanager
def typing(history: Path | None = None, mode: EditingMode = "emacs") -> Iterator[Callable[[str], str]]:
    """Return a function that types keys into one editor and returns the message that they send."""
    with create_pipe_input() as pipe, pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_editor, "create_input", lambda terminal: pipe)
        patch.setattr(line_editor, "create_output", lambda **unused: DummyOutput())
        editor = LineEditor(sys.stdin, lambda text: (), history, styling=PLAIN, thoughts=NoThoughts())
        editor.set_editing_mode(mode)

        def sent(keys: str) -> str:
            pipe.send_text(keys)
            return editor.read()

        yield sent


@pytest.mark.parametrize("keys", ["\x1b\r", "\n", "\x1b[13;2u", "\x1b[27;2;13~"])
def test_keys_that_add_a_line(keys: str) -> None:
    with typing() as sent:
        assert sent(f"one{keys}two\r") == "one\ntwo"


def test_pastes_are_sent_whole_and_backspace_deletes_a_whole_fold() -> None:
    with typing() as sent:
        keys = "read: " + pasted(PASTE.replace("\n", "\r\n")) + " and " + pasted("x" * 1000)
        assert sent(f"{keys}\r") == f"read: {PASTE} and {'x' * 1000}"
        assert sent("a " + pasted(PASTE) + "\x7f" + pasted("b\r\tc") + "\r") == "a b\n\tc"


def test_a_slash_or_quotes_in_a_paste_are_text() -> None:
    with typing() as sent:
        assert sent(pasted("/quit\r") + "\r").startswith("//quit")
        assert sent(pasted('"""A docstring."""\rx = 1') + "\r") == '"""A docstring."""\nx = 1'


def test_triple_quotes_hold_a_message_of_several_lines() -> None:
    with typing() as sent:
        assert sent('"""\r/set is no\r\rcommand here\r"""\r') == "//set is no\n\ncommand here"


def test_pastes_are_folded_again_from_the_history_of_another_editor(tmp_path: Path) -> None:
    with typing(tmp_path / "history") as sent:
        sent("sum up " + pasted(PASTE) + "\r")
        assert sent(f"{UP}!\r") == f"sum up {PASTE}!"
    with typing(tmp_path / "history") as sent:
        assert sent(f"{UP}{UP}?\r") == f"sum up {PASTE}?"


def test_the_history_search_looks_inside_pastes() -> None:
    with typing() as sent:
        for message in ("the Quick brown fox", "a lazy dog", pasted(PASTE), "another"):
            sent(f"{message}\r")
        assert sent(f"{CTRL_R}quick\r\x05!\r") == "the Quick brown fox!"
        assert sent(f"{CTRL_R}line 250 of\r\r") == PASTE


def test_up_moves_through_lines_before_the_history() -> None:
    with typing() as sent:
        sent("before\r")
        assert sent(f"one\ntwo{UP}{UP}!\r") == "before!"
        assert sent(f"one\ntwo{UP}X{UP}{DOWN}Y\r") == "oneXY\ntwo"
        assert sent(f"one\ntwo{UP}Z\r") == "oneZ\ntwo"


def test_a_discarded_input_comes_back() -> None:
    with typing() as sent:
        with pytest.raises(KeyboardInterrupt):
            sent("a long thought\x03")
        assert sent(f"{UP}!\r") == "a long thought!"
        with pytest.raises(EOFError):
            sent("\x04")


def test_wide_and_combining_characters_are_edited_as_one() -> None:
    with typing() as sent:
        assert sent(f"日本語 e\u0301 🎉x\x7f\x7f\x7f{LEFT}{LEFT}y\r") == "日本語 ye\u0301"


def test_vi() -> None:
    with typing(mode="vi") as sent:
        assert sent(f"one two three{ESCAPE}0cetwo{ESCAPE}$x\r") == "two two thre"
        assert sent(f"four{ESCAPE}\rfive\r") == "four\nfive"
        assert sent(f"{CTRL_R}two t\r\r") == "two two thre"
