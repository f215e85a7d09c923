"""Reader of whole lines, for dumb terminals and for input that is not a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from qwchat.characters import sanitise
from qwchat.chat.editor import message_syntax
from qwchat.chat.editor.message_reader import CONTINUATION, PROMPT, EditingMode
from qwchat.chat.editor.terminal_modes import canonical_mode, hold_keys
from qwchat.chat.interrupts import StopKey
from qwchat.errors import UsageError

_CONTINUED = re.compile(r"(?<!\\)(\\\\)*\\$")


class PlainReader:
    """Reader of messages, one or more lines each, from `stream`.

    A line that ends with a backslash continues on the next line; two backslashes are text. Triple quotes begin a
    message that ends with the next triple quotes.

    Args:
        stream: The input, in UTF-8.
        prompt_stream: Where the prompt is shown, or None to show none.
    """

    def __init__(self, stream: TextIO, prompt_stream: TextIO | None) -> None:
        self._stream = stream
        self._prompt_stream = prompt_stream

    def read(self, draft: str = "") -> str:
        """Show `draft`, if any, and return the next message. An empty line stands for `draft`.

        Raises:
            EOFError: At the end of the input.
            UsageError: If the input is not UTF-8.
        """
        if draft:
            self._show(sanitise("".join(f"| {line}\n" for line in draft.split("\n"))) + "(press Enter to send this)\n")
        typed = self._line(PROMPT)
        while message_syntax.is_block_open(typed) or _CONTINUED.search(typed):
            joined = typed + "\n" if message_syntax.is_block_open(typed) else typed[:-1] + "\n"
            try:
                typed = joined + self._line(CONTINUATION)
            except EOFError:
                typed = joined.removesuffix("\n")
                break
        block = message_syntax.block_content(typed)
        if block is not None:
            return message_syntax.escape_message(block)
        return typed or draft

    def set_editing_mode(self, mode: EditingMode) -> None:
        """Do nothing: the terminal edits lines in its own way."""

    def ask(self, prompt: str) -> str:
        """Show `prompt` and return the next line. Raises the errors of `read`."""
        return self._line(prompt)

    @contextmanager
    def watch_keys(self) -> Iterator[Callable[[], StopKey | None]]:
        """Keep keys for the next line. No key stops a reply; Ctrl-C does, as a signal."""
        with hold_keys(self._stream, by_line=True):
            yield lambda: None

    def _line(self, prompt: str) -> str:
        self._show(prompt)
        with canonical_mode(self._stream):
            line = self._stream.buffer.readline()
        if not line:
            self._show("\n")  # Ctrl-D does not move to a new line.
            raise EOFError
        try:
            return line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UsageError(f"the input is not UTF-8 text (byte {error.start + 1} of a line): convert it") from error

    def _show(self, text: str) -> None:
        if self._prompt_stream is not None:
            self._prompt_stream.write(text)
            self._prompt_stream.flush()
