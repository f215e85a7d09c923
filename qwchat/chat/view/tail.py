"""Frames on a terminal: rows that are printed once, and below them a short tail that each frame redraws.

A frame is one write inside synchronised output, so that a terminal that supports it shows the frame as a whole. Printed
rows are never changed and scroll away normally.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TextIO

from qwchat.markdown.styled_text import StyledRow, break_at_cells, max_cell_width

FRAMES_PER_SECOND = 15
_BURST_FRAMES = 3  # Frames that may be drawn without delay, so that single tokens appear at once.
_MAX_TAIL_ROWS = 12
_BEGIN_SYNC, _END_SYNC = "\x1b[?2026h", "\x1b[?2026l"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"  # Keeps a row on one line if the terminal measures its width differently.
# From the second column on: tmux treats an erasure from the top left corner as clearing the screen, and copies the
# screen into its scrollback.
ERASE_BELOW = "\r\x1b[K\x1b[C\x1b[J\r"
"""Sequence that erases the row of the cursor and all rows below it."""

_SETTLING_SECONDS = 0.3  # A size is stable after this long; tmux reports a resize up to 0.25 s late.
# Variables set by terminals that reflow lines on a resize. Other terminals cut lines off.
_REFLOWING_VARIABLES = (
    *("VTE_VERSION", "KITTY_WINDOW_ID", "WEZTERM_PANE", "ALACRITTY_WINDOW_ID", "KONSOLE_VERSION", "WT_SESSION"),
    *("GHOSTTY_RESOURCES_DIR", "ITERM_SESSION_ID", "TMUX"),
)
_REFLOWING_PROGRAMS = ("Apple_Terminal", "vscode", "iTerm.app", "WezTerm", "ghostty")
# TERM, unlike the variables above, passes through ssh.
_REFLOWING_TERMS = ("foot", "alacritty", "xterm-kitty", "xterm-ghostty", "wezterm", "contour")
# Programs that do not reflow but may run inside a terminal that does.
_NOT_REFLOWING_VARIABLES = ("STY", "XTERM_VERSION", "INSIDE_EMACS", "NVIM", "VIM_TERMINAL")


class TerminalSize(NamedTuple):
    """Columns and rows of a terminal."""

    columns: int
    rows: int

    @property
    def tail_rows(self) -> int:
        """Maximum number of rows of the tail."""
        return max(1, min(_MAX_TAIL_ROWS, self.rows // 3))


def terminal_size(stream: TextIO) -> TerminalSize:
    """Return the current size of the terminal behind `stream`, or 80 by 24 if it is unknown."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        columns, rows = 0, 0
    return TerminalSize(columns or 80, rows or 24)


def reflows(environment: Mapping[str, str] = os.environ) -> bool:
    """Return True if the terminal is known to reflow lines when it becomes narrower.

    If this is wrong in one direction, a resize leaves old rows of the tail behind; in the other, it erases rows above
    the tail. Unknown terminals therefore count as not reflowing.
    """
    term = environment.get("TERM", "")
    if "TMUX" in environment and term.startswith(("tmux", "screen")):
        return "STY" not in environment
    if any(name in environment for name in _NOT_REFLOWING_VARIABLES):
        return False
    known = any(name in environment for name in _REFLOWING_VARIABLES) or term.startswith(_REFLOWING_TERMS)
    return known or environment.get("TERM_PROGRAM") in _REFLOWING_PROGRAMS


class FrameLimiter:
    """Limiter of the frame rate: no delay after a pause, and at most FRAMES_PER_SECOND on average.

    While the window is being resized, no frame is drawn: a frame for a wrong size would erase rows above the tail or
    leave rows of it behind.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._credit = float(_BURST_FRAMES)
        self._last_check = clock()
        self._size: TerminalSize | None = None
        self._settled_at = self._last_check  # Time from which the size is stable.

    def may_draw(self, size: TerminalSize) -> bool:
        """Return True if a frame may be drawn now at this size, and count it as drawn."""
        if self.seconds_until_settled(size):
            return False
        now = self._clock()
        self._credit = min(_BURST_FRAMES, self._credit + (now - self._last_check) * (FRAMES_PER_SECOND - _BURST_FRAMES))
        self._last_check = now
        if self._credit < 1:
            return False
        self._credit -= 1
        return True

    def seconds_until_settled(self, size: TerminalSize) -> float:
        """Return the seconds until a frame may be drawn, provided the size stays `size`."""
        now = self._clock()
        if size != self._size:
            self._settled_at = now if self._size is None else now + _SETTLING_SECONDS
            self._size = size
        return max(0.0, self._settled_at - now)


class LiveTail:
    """Printed rows and a tail that is redrawn, on a terminal.

    Args:
        out: The terminal.
        reflowing: Whether the terminal reflows lines when it becomes narrower.
    """

    def __init__(self, out: TextIO, *, reflowing: bool) -> None:
        self._out = out
        self._reflowing = reflowing
        self._tail: Sequence[StyledRow] = ()

    def draw(self, rows: Sequence[StyledRow], tail: Sequence[StyledRow], size: TerminalSize) -> None:
        """Print `rows` permanently and redraw `tail` below them. Do nothing if nothing has changed."""
        tail = tail[-size.tail_rows :]
        if not rows and list(tail) == list(self._tail):
            return
        parts = [_BEGIN_SYNC, self._cursor_to_start(size), ERASE_BELOW]
        parts += [row.to_ansi() + "\n" for row in rows]
        parts += ["\n".join(self._tail_row(row, size) for row in tail), _END_SYNC]
        self._tail = tail
        self._out.write("".join(parts))
        self._out.flush()

    def detach(self) -> None:
        """Leave the tail where it is: another program wrote below it. The next frame starts a new tail."""
        self._tail = ()

    def _tail_row(self, row: StyledRow, size: TerminalSize) -> str:
        """Return a row of the tail that takes as many screen rows as `_cursor_to_start` counts."""
        if not row.text or (self._reflowing and max_cell_width(row.text) <= size.columns):
            # The terminal reflows this row, so that the count stays right if the window becomes narrower.
            return row.to_ansi()
        return f"{_NO_WRAP}{row.to_ansi()}{_WRAP}"

    def _cursor_to_start(self, size: TerminalSize) -> str:
        """Return the sequence that moves the cursor from the end of the tail to its first row."""
        above = len(self._tail) - 1
        if self._reflowing:
            above = sum(len(break_at_cells(row.segments, size.columns)) for row in self._tail) - 1
        above = min(above, size.rows - 1)
        return f"\x1b[{above}A" if above > 0 else ""
