"""Replies in plain text and in a pipe, and the last reply and its code."""

from __future__ import annotations

import io

from qwchat.chat.view.reply import ReplyView
from qwchat.markdown.styles import Styling
from tests.chat.view.emulator import EmulatedTerminal
from tests.chat.view.test_tail import Viewer, words


def test_plain_rendering_writes_text_as_it_arrives() -> None:
    viewer = Viewer()
    viewer.view.set_rendering("plain")
    viewer.say("# **One**\r", "\n", "two \x1b[31m\r", "three")
    viewer.view.end()
    assert viewer.out.writes == ["# **One**", "\n", "two ␛[31m", "␍three", "\n"]


def test_a_pipe_gets_the_bytes_of_the_reply_and_a_newline() -> None:
    out = io.StringIO()
    view = ReplyView(out, Styling(terminal=False, emphasis=False, colour=False), "markdown")
    for piece in ("# **O", "ne**\r\n\x1b[31m", "\n"):
        view.write(piece)
    view.end()
    assert out.getvalue() == "# **One**\r\n\x1b[31m\n\n"


def test_coloured_markdown_in_a_pipe_has_no_tail_and_no_wrapping() -> None:
    out = io.StringIO()
    view = ReplyView(out, Styling(terminal=False, emphasis=True, colour=True), "markdown")
    for piece in words("**One** " + "word " * 40 + "\n\n```\nx\n```"):
        view.write(piece)
    view.end()
    assert out.getvalue() == "\x1b[1mOne\x1b[0m " + "word " * 39 + "word\n\n\x1b[2m── 1\x1b[0m\nx\n\x1b[2m──\x1b[0m\n"


def test_a_terminal_that_cannot_redraw_gets_each_row_once_it_is_final() -> None:
    out = EmulatedTerminal(40, 12)
    view = ReplyView(out, Styling(terminal=True, emphasis=True, colour=True), live=False)
    for piece in words("One **two** three\nfour\n\n- five\n- six"):
        view.write(piece)
    view.end()
    assert out.writes == ["One \x1b[1mtwo\x1b[0m three\nfour\n", "\n• five\n• six\n"]


def test_the_last_reply_and_its_code_are_kept() -> None:
    viewer = Viewer()
    viewer.say("Look:\n\n```py\nx\n", "```\n")
    viewer.view.end()
    assert viewer.view.last_reply == "Look:\n\n```py\nx\n```\n"
    assert viewer.view.last_code_blocks == ["x\n"]
    viewer.say("Next")
    assert viewer.view.last_reply == "Next"


def test_an_empty_reply_ends_with_a_newline_only_in_a_pipe() -> None:
    viewer = Viewer()
    viewer.view.end()
    assert "".join(viewer.out.writes) == ""


def test_a_continued_reply_completes_its_open_block() -> None:
    viewer = Viewer()
    viewer.say("Look:\n```py\nx = ")
    viewer.view.end()
    viewer.view.resume("Look:\n```py\nx = ")
    viewer.say("1\n```\n", "and **more**")
    viewer.view.end()
    assert viewer.out.lines == ["Look:", "── 1 · py", "x =", "1", "──", "and more"]
    assert viewer.view.last_code_blocks == ["x = 1\n"]
