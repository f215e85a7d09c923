"""Status lines on standard error that are redrawn in place and erased at the end."""

from __future__ import annotations

import time
from typing import TextIO

from qwchat.chat.formatting import duration
from qwchat.chat.view.tail import terminal_size
from qwchat.events import Prefilled
from qwchat.markdown.styled_text import clip
from qwchat.markdown.styles import DIM, Styling

_DELAY_SECONDS = 0.2  # A shorter prefill shows nothing.
ERASE_LINE = "\r\x1b[K"


class PrefillStatus:
    """Status line of a long prefill, and of a reply that is being stopped.

    It shows `reading the prompt: 256 of 1,024 tokens (25 %), 210 tok/s, 4 s to go`, or `stopping…` from the stop key
    until the reply ends.

    Args:
        stream: Standard error.
        styling: What `stream` may show.
        enabled: False to write nothing: the stream cannot redraw a line, or the user asked for quiet.
    """

    def __init__(self, stream: TextIO, styling: Styling, *, enabled: bool) -> None:
        self._stream = stream
        self._styling = styling
        self._enabled = enabled
        self._started = time.monotonic()
        self._shown = self._prefilling = self._stopping = False

    def start(self) -> None:
        """Start the clock of a new prefill."""
        self._started = time.monotonic()
        self._prefilling, self._stopping = True, False

    def stopping(self) -> None:
        """Show that the prefill is being stopped."""
        if self._enabled and self._prefilling and not self._stopping:
            self._stopping = True
            self._draw("stopping…")

    def update(self, event: Prefilled) -> None:
        """Redraw the line, unless the prefill is short enough not to need one."""
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
        self._shown = True  # Set before drawing: Ctrl-C in between must erase the line too.
        self._stream.write(ERASE_LINE + self._styling.styled(clip_to_terminal(line, self._stream), DIM))
        self._stream.flush()

    def clear(self) -> None:
        """Erase the line: the prefill has finished or was stopped."""
        self._prefilling = False
        if self._shown:
            self._shown = False
            self._stream.write(ERASE_LINE)
            self._stream.flush()


def clip_to_terminal(line: str, stream: TextIO) -> str:
    """Return `line` cut to one terminal row, since a line that wraps cannot be erased."""
    return clip(line, terminal_size(stream).columns - 1)
