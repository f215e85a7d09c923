"""Word wrapping of the program's messages in narrow windows."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwchat.chat.view import screen
from qwchat.chat.view.screen import Screen
from qwchat.chat.view.tail import TerminalSize
from qwchat.chat.view.word_wrap import wrap_message
from qwchat.markdown.styled_text import cell_width
from qwchat.markdown.styles import PLAIN, Styling

WORDS = st.text("ab日é́ -/", max_size=200)


def test_lines_are_wrapped_between_words() -> None:
    assert wrap_message("the reply was cut off at --max-tokens 1: allow more", 24) == (
        "the reply was cut off at\n--max-tokens 1: allow\nmore"
    )
    assert wrap_message("short\n\nlines stay", 20) == "short\n\nlines stay"


def test_continuation_lines_align_with_their_column() -> None:
    assert wrap_message("  /retry [--seed N]  generate another reply to it", 40) == (
        "  /retry [--seed N]  generate another\n                     reply to it"
    )
    assert wrap_message("    indented text continues below its start", 30) == (
        "    indented text continues\n    below its start"
    )


def test_continuation_lines_of_a_narrow_column_are_only_indented() -> None:
    assert wrap_message("first token  after 0.12 s on average, 0.12 s at most", 20) == (
        "first token  after\n  0.12 s on average,\n  0.12 s at most"
    )
    assert (
        wrap_message("first token  after 0.12 s on average", 25) == "first token  after 0.12 s\n             on average"
    )


def test_a_column_too_far_right_does_not_count() -> None:
    assert wrap_message("a name as long as this one is  value here", 32) == "a name as long as this one is\nvalue here"


def test_the_second_column_of_a_list_goes_below_the_first_in_a_narrow_window() -> None:
    assert wrap_message("Turns\n  /retry [--NAME VALUE ...]    generate another reply to it\n  /redo  again", 40) == (
        "Turns\n  /retry [--NAME VALUE ...]\n      generate another reply to it\n  /redo  again"
    )
    assert wrap_message("  Alt-Enter, Ctrl-J            break the line; so does this", 24) == (
        "  Alt-Enter, Ctrl-J\n      break the line; so\n      does this"
    )


def test_a_word_stays_whole() -> None:
    path = "/" + "x" * 60
    assert wrap_message(f"saved to {path} just now", 30) == f"saved to\n{path}\njust now"


def test_a_very_narrow_window_is_not_wrapped() -> None:
    assert wrap_message("one two three four five six", 19) == "one two three four five six"


@given(st.lists(WORDS, max_size=4).map("\n".join), st.integers(20, 60))
def test_wrapping_loses_nothing(text: str, columns: int) -> None:
    broken = wrap_message(text, columns)
    assert broken.split() == text.split() or "".join(broken.split()) == "".join(text.split())
    for row in broken.split("\n"):
        assert cell_width(row) <= columns or " " not in row.strip(" ")


@pytest.mark.parametrize("terminal", [True, False])
def test_only_messages_on_a_terminal_are_wrapped(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "terminal_size", lambda _: TerminalSize(30, 24))
    stream = io.StringIO()
    shown = Screen(stream, Styling(terminal, emphasis=False, colour=False) if terminal else PLAIN)
    shown.error("the model folder has no weights.bin: convert it again")
    shown.verbatim("text of the user keeps its long lines\x1b")
    assert stream.getvalue() == (
        "qwchat: error: the model\nfolder has no weights.bin:\nconvert it again\n"
        if terminal
        else "qwchat: error: the model folder has no weights.bin: convert it again\n"
    ) + ("text of the user keeps its long lines␛\n")
