"""Thoughts on an emulated terminal and in a pipe."""

from __future__ import annotations

import io

import pytest

from qwchat.chat.view.screen import Screen
from qwchat.chat.view.tail import TerminalSize
from qwchat.chat.view.thoughts import ThoughtMode, ThoughtView
from qwchat.markdown.styles import PLAIN, Styling
from tests.chat.view.emulator import EmulatedTerminal
from tests.markdown.test_stream_parser import Clock

FULL = Styling(terminal=True, emphasis=True, colour=True)
SIZE = TerminalSize(60, 12)


def viewer(mode: ThoughtMode, *, quiet: bool = False) -> tuple[ThoughtView, EmulatedTerminal, Clock]:
    out, clock = EmulatedTerminal(*SIZE), Clock()
    screen = Screen(out, FULL, quiet=quiet)
    advice = " (/think shows it)"
    return ThoughtView(screen, mode, live=not quiet, advice=advice, clock=clock, size=lambda _: SIZE), out, clock


def text(out: EmulatedTerminal) -> str:
    return "\n".join(out.lines)


def think(view: ThoughtView, clock: Clock, *pieces: str) -> None:
    for piece in pieces:
        clock.now += 1
        view.write(piece, 1)


def test_a_folded_thought_shows_its_last_rows_and_then_one_line() -> None:
    view, out, clock = viewer("fold")
    think(view, clock, "", "one\n", *(f"row {number}\n" for number in range(9)), "last\x1b[2J")
    assert out.lines == ["row 6", "row 7", "row 8", "last␛[2J"]
    assert "\x1b[2mrow 8\x1b[0m" in out.writes[-1]
    view.end()
    assert text(out) == "thought for 11 s, 12 tokens (/think shows it)"
    assert out.writes[-1].startswith("\x1b[2mthought for")
    view.end()
    view.end(stopped=True)
    think(view, clock, "again")
    clock.now += 60
    view.end()
    assert out.lines[-1] == "thought for 1 min 0 s, 1 token (/think shows it)"


@pytest.mark.parametrize("mode", ["fold", "hide", "off"])
def test_a_stopped_thought_leaves_nothing(mode: ThoughtMode) -> None:
    view, out, clock = viewer(mode)
    think(view, clock, "one ", "two ", "three ")
    assert text(out) == ("one two three" if mode == "fold" else "thinking…")
    view.end(stopped=True)
    assert text(out) == ""


def test_a_hidden_thought_is_announced_until_its_end() -> None:
    view, out, clock = viewer("hide")
    think(view, clock, "", " ", "secret")
    assert text(out) == "thinking…"
    assert len(out.writes) == 1
    view.end()
    assert text(out) == ""


def test_a_shown_thought_stays_above_the_answer() -> None:
    view, out, clock = viewer("show")
    think(view, clock, "one ", "two\x07")
    view.end()
    assert text(out) == "one two␇"
    assert out.writes == ["\x1b[2mone \x1b[0m", "\x1b[2mtwo␇\x1b[0m", "\n\n"]


@pytest.mark.parametrize("mode", ["fold", "hide", "off"])
def test_a_thought_can_be_shown_whole_while_it_is_generated(mode: ThoughtMode) -> None:
    view, out, clock = viewer(mode)
    assert not view.toggle()
    think(view, clock, *(f"row {number}\n" for number in range(9)), "last\x1b")
    assert "row 0" not in text(out)
    assert view.toggle()
    rows = [f"row {number}" for number in range(9)]
    assert out.lines == [*rows, "last␛"]
    think(view, clock, " more")
    assert out.lines == [*rows, "last␛ more"]
    view.end()
    assert out.lines == [*rows, "last␛ more"]
    assert out.writes[-1] == "\n\n"
    assert not view.toggle()
    think(view, clock, "secret")
    view.end(stopped=True)
    assert "secret" not in text(out)


@pytest.mark.parametrize("mode", ["fold", "show"])
def test_a_thought_that_is_shown_can_be_folded(mode: ThoughtMode) -> None:
    view, out, clock = viewer(mode)
    think(view, clock, "one ")
    for _ in range(1 if mode == "show" else 2):
        assert view.toggle()
    assert out.lines == ["one"]
    think(view, clock, "two", " three")
    assert out.lines == ["one", "one two three"]
    view.end()
    assert out.lines == ["one", "thought for 2 s, 3 tokens (/think shows it)"]


def test_a_finished_thought_is_wrapped_and_dimmed() -> None:
    view, _, _ = viewer("fold")
    rows = view.rows("one two\x1b\n\nthree", 6)
    assert rows == ["\x1b[2mone\x1b[0m", "\x1b[2mtwo␛\x1b[0m", "", "\x1b[2mthree\x1b[0m"]
    assert view.rows("", 6) == []


@pytest.mark.parametrize("mode", ["fold", "hide", "show", "off"])
def test_an_empty_thought_shows_nothing(mode: ThoughtMode) -> None:
    view, out, clock = viewer(mode)
    think(view, clock, "", "", "")
    view.end()
    assert out.writes == []


def test_a_quiet_screen_shows_only_what_was_asked_for() -> None:
    view, out, clock = viewer("fold", quiet=True)
    think(view, clock, "one")
    view.end()
    assert out.writes == []
    view.mode = "show"
    think(view, clock, "one")
    view.end()
    assert text(out) == "one"


@pytest.mark.parametrize(("mode", "expected"), [("fold", ""), ("hide", ""), ("off", ""), ("show", "one\r\n\x1b\n")])
def test_a_pipe_gets_shown_thoughts_verbatim(mode: ThoughtMode, expected: str) -> None:
    out = io.StringIO()
    view = ThoughtView(Screen(out, PLAIN), mode, live=False)
    view.write("one\r\n", 1)
    view.write("\x1b", 1)
    view.end()
    assert out.getvalue() == expected


def test_a_closed_stream_is_ignored() -> None:
    out = io.StringIO()
    for mode in ("show", "fold", "hide"):
        view = ThoughtView(Screen(out, FULL), mode, live=True, size=lambda _: SIZE)  # type: ignore[arg-type]
        out.close()
        view.write("one", 1)
        view.end()
