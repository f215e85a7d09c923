"""Choice between the line editor and the plain reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from qwchat.chat.editor.message_reader import MessageReader, Suggest, ThoughtKeys
from qwchat.chat.editor.plain_reader import PlainReader
from qwchat.chat.view.screen import Screen


def open_reader(
    terminal: TextIO,
    suggest: Suggest,
    screen: Screen,
    *,
    history: Path | None,
    thoughts: ThoughtKeys,
    meter: Callable[[], str] = str,
) -> MessageReader:
    """Return the line editor, or a plain reader with a notice if the editor cannot work on `terminal`.

    Args:
        terminal: The terminal to read from.
        suggest: As for `LineEditor`.
        screen: Standard error.
        history: As for `LineEditor`.
        thoughts: As for `LineEditor`.
        meter: As for `LineEditor`.
    """
    try:
        from qwchat.chat.editor.line_editor import LineEditor

        return LineEditor(terminal, suggest, history, styling=screen.styling, thoughts=thoughts, meter=meter)
    # prompt-toolkit raises any of these on a terminal that it does not support.
    except (ImportError, OSError, ValueError, AssertionError) as error:
        reason = str(error) or type(error).__name__
        screen.notice(
            f"the line editor does not work here ({reason}): Enter sends, a backslash before Enter adds a line"
        )
        return PlainReader(terminal, screen.stream)
