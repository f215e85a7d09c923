"""The picker, through prompt-toolkit's pipe instead of a terminal."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from qwchat.chat.editor.picker import Picker, matching_rows
from tests.chat.pty import Terminal

ROWS = ["Bread for beginners  2 turns", "Träume, kurz  9 turns", *(f"number {n}" for n in range(2, 30))]
UP, DOWN, PAGE_DOWN = "\x1b[A", "\x1b[B", "\x1b[6~"


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        ("\r", 0),
        (f"{DOWN}{DOWN}{UP}\r", 1),
        (f"{UP}\r", 0),
        (f"{PAGE_DOWN * 5}\r", 29),
        ("TRÄUME 9\r", 1),
        (f"number 2{DOWN}\r", 12),
        ("no such row\r\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08turns\r", 0),
        (f"{DOWN}bread\r", 0),
        ("\x1b", None),
        ("bread\x03", None),
        ("\x04", None),
    ],
)
def test_keys(keys: str, chosen: int | None) -> None:
    with create_pipe_input() as pipe:
        pipe.send_text(keys)
        assert Picker(ROWS, pipe, DummyOutput()).run() == chosen


def test_every_word_must_occur_in_any_case() -> None:
    assert matching_rows(["Alpha beta", "beta GAMMA", "delta"], " BETA a ") == [0, 1]
    assert matching_rows(["Straße"], "STRASSE") == [0]
    assert matching_rows(["a", "b"], "") == [0, 1]
    assert matching_rows([], "x") == []


def test_the_list_on_the_screen_and_that_it_is_erased(tmp_path: Path) -> None:
    script = Path(__file__).with_name("show_picker.py")
    items = [f"{number}\x1b[31m\nof many" for number in range(1, 31)]
    with Terminal(models=tmp_path, command=[sys.executable, str(script), *items]) as terminal:
        terminal.wait("30 of 30")
        expected = [f"{'>' if number == 1 else ' '} item {number}^[[31m of many" for number in range(1, 11)]
        foot = "30 of 30 · Enter chooses · Esc cancels"
        assert terminal.text.splitlines() == ["before", "Search:", *expected, foot]
        terminal.type("m 7")
        terminal.wait("3 of 30")
        terminal.type(DOWN)
        terminal.wait("> item 17")
        assert terminal.text.splitlines()[1:6] == [
            "Search: m 7",
            "  item 7^[[31m of many",
            "> item 17^[[31m of many",
            "  item 27^[[31m of many",
            "3 of 30 · Enter chooses · Esc cancels",
        ]
        terminal.type("\r")
        assert terminal.end() == 0
        assert terminal.text.splitlines() == ["before", "chosen: 17␛[31m", "of many"]
