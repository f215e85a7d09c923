"""Lines on standard error that are drawn over and leave nothing behind: how far something has come."""

from __future__ import annotations

import time
from typing import TextIO

from qwchat.chat.formatting import duration
from qwchat.chat.view.tail import terminal_size
from qwchat.events import Prefilled
from qwchat.markdown.styled_text import clip
from qwchat.markdown.styles import DIM, Styling

_DELAY_SECONDS = 0.2  # What is over sooner needs no progress.
ERASE_LINE = "\r\x1b[K"


class PrefillStatus:
    """Shows `reading the prompt: 256 of 1,024 tokens (25 %), 210 tok/s, 4 s to go` while a long prompt is read, and
    `stopping…` from the key that stops it until it has stopped.

    Args:
        stream: standard error.
        enabled: False where the stream cannot draw over a line, or nobody asked for it; then nothing is written.
    """

    def __init__(self, stream: TextIO, styling: Styling, *, enabled: bool) -> None:
        self._stream = stream
        self._styling = styling
        self._enabled = enabled
        self._started = time.monotonic()
        self._shown = self._prefilling = self._stopping = False

    def start(self) -> None:
        """A new prompt begins to be read now."""
        self._started = time.monotonic()
        self._prefilling, self._stopping = True, False

    def stopping(self) -> None:
        """Say that the reading of the prompt is being stopped."""
        if self._enabled and self._prefilling and not self._stopping:
            self._stopping = True
            self._draw("stopping…")

    def update(self, event: Prefilled) -> None:
        """Draw the line anew where reading takes long enough for a person to wonder."""
        seconds = time.monotonic() - self._started
        if not self._enabled or self._stopping or seconds < _DELAY_SECONDS or event.done >= event.total:
            return
        read = event.done - event.cached
        line = f"reading the prompt: {event.done:,} of {event.total:,} tokens ({100 * event.done // event.total} %)"
        if read > 0:
            left = (event.total - event.done) * seconds / read
            line += f", {read / seconds:,.0f} tok/s, {duration(left)} to go"
        self._draw(line)

    def _draw(self, line: str) -> None:
        self._shown = True  # Before it is: Ctrl-C may come in between, and then the line must go.
        self._stream.write(ERASE_LINE + self._styling.styled(clip_to_terminal(line, self._stream), DIM))
        self._stream.flush()

    def clear(self) -> None:
        """Erase the line: the prompt has been read, or is not read any further."""
        self._prefilling = False
        if self._shown:
            self._shown = False
            self._stream.write(ERASE_LINE)
            self._stream.flush()


def clip_to_terminal(line: str, stream: TextIO) -> str:
    """Return as much of `line` as can be erased again: a row that wraps would be left behind."""
    return clip(line, terminal_size(stream).columns - 1)
