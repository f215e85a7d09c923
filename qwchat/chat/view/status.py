"""A line on standard error that is drawn over and leaves nothing behind: how far the prompt has been read."""

from __future__ import annotations

import time
from typing import TextIO

from qwchat.chat.view.terminal import DIM, Look
from qwchat.events import Prefilled

_PATIENCE_SECONDS = 0.4  # What is over sooner needs no progress.
_ERASE = "\r\x1b[K"


class PrefillStatus:
    """Shows ``reading the prompt 256/1,024 (25 %), 3 s to go`` while a long prompt is read.

    Args:
        stream: standard error.
        enabled: False where the stream cannot draw over a line, or nobody asked for it; then nothing is written.
    """

    def __init__(self, stream: TextIO, look: Look, *, enabled: bool) -> None:
        self._stream = stream
        self._look = look
        self._enabled = enabled
        self._started = time.monotonic()
        self._shown = False

    def start(self) -> None:
        """A new prompt begins to be read now."""
        self._started = time.monotonic()

    def update(self, event: Prefilled) -> None:
        """Draw the line anew where reading takes long enough for a person to wonder."""
        seconds = time.monotonic() - self._started
        if not self._enabled or seconds < _PATIENCE_SECONDS or event.done >= event.total:
            return
        read = event.done - event.cached
        left = f", {(event.total - event.done) * seconds / read:.0f} s to go" if read > 0 else ""
        line = f"reading the prompt: {event.done:,} of {event.total:,} tokens{left}"
        self._shown = True  # Before it is: Ctrl-C may come in between, and then the line must go.
        self._stream.write(_ERASE + self._look.styled(line, DIM))
        self._stream.flush()

    def clear(self) -> None:
        """Erase the line."""
        if self._shown:
            self._shown = False
            self._stream.write(_ERASE)
            self._stream.flush()
