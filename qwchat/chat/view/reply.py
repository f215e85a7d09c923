"""Where a reply is written: byte for byte into a pipe or a file, harmless and lightly styled on a terminal."""

from __future__ import annotations

from typing import Literal, TextIO

from qwchat.chat.view.markdown import MarkdownStyler
from qwchat.chat.view.terminal import Look, harmless

Rendering = Literal["plain", "markdown"]


class ReplyView:
    """Writes one reply after another to ``out``, each piece as it comes, never anything over it.

    Args:
        out: standard output.
        look: what ``out`` can show. Neither a terminal nor styled: the text is written as it is.
        rendering: "markdown" styles headings, strong text and code; "plain" styles nothing.
    """

    def __init__(self, out: TextIO, look: Look, rendering: Rendering = "markdown") -> None:
        self._out = out
        self._verbatim = not (look.terminal or look.emphasis or look.colour)
        self._one_newline = not look.terminal
        styled = rendering == "markdown" and (look.emphasis or look.colour)
        self._styler = MarkdownStyler(look) if styled else None
        self._last = "\n"

    def write(self, text: str) -> None:
        """Show the next piece of the reply at once."""
        if not text:
            return
        self._last = text[-1]
        if not self._verbatim:
            text = harmless(text)
        if self._styler is not None:
            text = self._styler.push(text)
        self._out.write(text)
        self._out.flush()

    def end(self) -> None:
        """End the reply with its newline (on a terminal only where the reply did not end with one itself)."""
        rest = self._styler.flush() if self._styler is not None else ""
        if self._one_newline or self._last != "\n":
            rest += "\n"
        self._last = "\n"
        self._out.write(rest)
        self._out.flush()
