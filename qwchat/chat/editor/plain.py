"""Reading by the line: for dumb terminals and for input that is no terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from qwchat.characters import sanitise
from qwchat.chat.editor import blocks
from qwchat.chat.editor.modes import by_line, keys_unseen
from qwchat.chat.editor.reader import CONTINUATION, PROMPT, EditingMode
from qwchat.chat.interrupts import StopKey
from qwchat.errors import UsageError

_CONTINUED = re.compile(r"(?<!\\)(\\\\)*\\$")


class PlainReader:
    r"""Reads lines from `stream`.

    A backslash at the end of a line (an odd number of them) goes on to the next, and `\"\"\"` begins a message that
    goes on to the next `\"\"\"`.

    Args:
        stream: the input, bytes of UTF-8.
        prompt: where to write the prompt sign, or None where nobody watches.
    """

    def __init__(self, stream: TextIO, prompt: TextIO | None) -> None:
        self._stream = stream
        self._prompt = prompt

    def read(self, draft: str = "") -> str:
        """The next message; an empty line stands for `draft`, which is shown.

        Raises EOFError, and UsageError for bytes that are no UTF-8.
        """
        if draft:
            self._show(sanitise("".join(f"| {line}\n" for line in draft.split("\n"))) + "(Enter alone sends this)\n")
        typed = self._line(PROMPT)
        while blocks.is_open(typed) or _CONTINUED.search(typed):
            joined = typed + "\n" if blocks.is_open(typed) else typed[:-1] + "\n"
            try:
                typed = joined + self._line(CONTINUATION)
            except EOFError:
                typed = joined.removesuffix("\n")
                break
        block = blocks.inside(typed)
        if block is not None:
            return blocks.as_message(block)
        return typed or draft

    def edit_as(self, mode: EditingMode) -> None:
        """The terminal edits lines in its own way."""

    def ask(self, sign: str) -> str:
        """The next line, behind `sign`. Raises what :meth:`read` raises."""
        return self._line(sign)

    @contextmanager
    def watching(self) -> Iterator[Callable[[], StopKey | None]]:
        """Keys wait for the next line; Ctrl-C alone, which comes as a signal, stops a reply."""
        with keys_unseen(self._stream, by_line=True):
            yield lambda: None

    def _line(self, sign: str) -> str:
        self._show(sign)
        with by_line(self._stream):
            line = self._stream.buffer.readline()
        if not line:
            self._show("\n")  # Ctrl-D moves to no new line by itself.
            raise EOFError
        try:
            return line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UsageError(f"the input is no UTF-8 text (byte {error.start + 1} of a line): convert it") from error

    def _show(self, text: str) -> None:
        if self._prompt is not None:
            self._prompt.write(text)
            self._prompt.flush()
