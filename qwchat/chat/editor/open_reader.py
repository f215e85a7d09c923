"""Choosing how to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from qwchat.chat.editor.message_reader import MessageReader, Suggest
from qwchat.chat.editor.plain_reader import PlainReader
from qwchat.chat.view.screen import Screen


def open_reader(
    terminal: TextIO,
    suggest: Suggest,
    screen: Screen,
    *,
    history: Path | None,
    meter: Callable[[], str] = str,
) -> MessageReader:
    """The line editor on `terminal`; lines that the terminal edits, with a notice, where it cannot work there.

    The other arguments are the editor's.
    """
    try:
        from qwchat.chat.editor.line_editor import LineEditor

        return LineEditor(terminal, suggest, history, styling=screen.styling, meter=meter)
    except (ImportError, OSError, ValueError, AssertionError) as error:  # No terminal that prompt-toolkit knows.
        reason = str(error) or type(error).__name__
        screen.notice(f"no line editor here ({reason}): Enter sends, a backslash before it breaks the line")
        return PlainReader(terminal, screen.stream)
