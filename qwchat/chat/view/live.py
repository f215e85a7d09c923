"""Frames on a terminal: rows that stay, and below them a short tail that the next frame draws anew.

A frame is one write, inside synchronised output, so that a terminal which knows that shows it as a whole. What has been
printed is never touched again and scrolls away as the terminal likes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TextIO

from qwchat.chat.view.width import Row, cells

FRAMES_PER_SECOND = 15
_BURST = 3  # Frames that may follow each other at once, so that a few tokens at a time are all seen.
_TALLEST_TAIL = 12
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"  # A tail whose widths the terminal sees otherwise keeps its number of rows.
_ERASE_BELOW = "\r\x1b[J"
# Variables by which terminals that break lines anew on a resize make themselves known. Others cut them off.
_REFLOWING = (
    *("VTE_VERSION", "KITTY_WINDOW_ID", "WEZTERM_PANE", "ALACRITTY_WINDOW_ID", "KONSOLE_VERSION", "WT_SESSION"),
    *("GHOSTTY_RESOURCES_DIR", "ITERM_SESSION_ID", "TMUX"),
)
_REFLOWING_PROGRAMS = ("Apple_Terminal", "vscode", "iTerm.app", "WezTerm", "ghostty")


class Size(NamedTuple):
    """Columns and rows of a terminal."""

    columns: int
    rows: int

    @property
    def cap(self) -> int:
        """Rows that the tail may have."""
        return max(1, min(_TALLEST_TAIL, self.rows // 3))


def terminal_size(stream: TextIO) -> Size:
    """The size of the terminal behind ``stream``, asked anew each time; 80 by 24 where it does not say."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        columns, rows = 0, 0
    return Size(columns or 80, rows or 24)


def reflows(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the terminal is one that breaks lines anew when it becomes narrower."""
    return any(name in environment for name in _REFLOWING) or environment.get("TERM_PROGRAM") in _REFLOWING_PROGRAMS


class Pace:
    """Says when a frame may be drawn: at once after a pause, and never more than FRAMES_PER_SECOND in a second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._saved = float(_BURST)
        self._last = clock()

    def due(self) -> bool:
        """Whether a frame may be drawn now; then it counts as drawn."""
        now = self._clock()
        self._saved = min(_BURST, self._saved + (now - self._last) * (FRAMES_PER_SECOND - _BURST))
        self._last = now
        if self._saved < 1:
            return False
        self._saved -= 1
        return True


class Live:
    """Draws frames on ``out``.

    Args:
        out: a terminal.
        reflowing: whether it breaks lines anew when it becomes narrower.
    """

    def __init__(self, out: TextIO, *, reflowing: bool) -> None:
        self._out = out
        self._reflowing = reflowing
        self._tail: list[str] = []
        self._widths: list[int] = []

    def frame(self, rows: Sequence[Row], tail: Sequence[Row], size: Size) -> None:
        """Print ``rows`` for good and draw ``tail`` below; nothing where nothing has changed."""
        shown = [row.shown() for row in tail[-size.cap :]]
        if not rows and shown == self._tail:
            return
        parts = [_BEGIN, self._to_start(size), _ERASE_BELOW]
        parts += [row.shown() + "\n" for row in rows]
        if shown:
            parts += [_NO_WRAP, "\n".join(shown), _WRAP]
        parts.append(_END)
        self._tail, self._widths = shown, [cells(row.text) for row in tail[-size.cap :]]
        self._out.write("".join(parts))
        self._out.flush()

    def moved(self) -> None:
        """Something else was written below the tail, which stays where it is: the next frame begins anew."""
        self._tail, self._widths = [], []

    def _to_start(self, size: Size) -> str:
        """Moves the cursor from the end of the tail that is on the screen to its first row."""
        above = len(self._widths) - 1
        if self._reflowing:
            above = sum(max(1, -(-width // size.columns)) for width in self._widths) - 1
        above = min(above, size.rows - 1)
        return f"\x1b[{above}A" if above > 0 else ""
