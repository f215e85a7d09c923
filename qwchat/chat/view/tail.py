"""Frames on a terminal: rows that stay, and below them a short tail that the next frame draws anew.

A frame is one write, inside synchronised output, so that a terminal which knows that shows it as a whole. What has been
printed is never touched again and scrolls away as the terminal likes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TextIO

from qwchat.markdown.styled_text import StyledRow, break_at_cells, max_cell_width

FRAMES_PER_SECOND = 15
_BURST_FRAMES = 3  # Frames that may follow each other at once, so that a few tokens at a time are all seen.
_MAX_TAIL_ROWS = 12
_BEGIN_SYNC, _END_SYNC = "\x1b[?2026h", "\x1b[?2026l"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"  # A row about whose width the terminal thinks otherwise stays one row.
# From the second column on: tmux takes an erasure that begins in the corner of the screen for a cleared screen, and
# keeps what was on it in its scrollback.
_ERASE_BELOW = "\r\x1b[K\x1b[C\x1b[J\r"
_SETTLING_SECONDS = 0.3  # How long a new size must have held; tmux tells of one up to a quarter of a second late.
# Variables by which terminals that break lines anew on a resize make themselves known. Others cut them off.
_REFLOWING_VARIABLES = (
    *("VTE_VERSION", "KITTY_WINDOW_ID", "WEZTERM_PANE", "ALACRITTY_WINDOW_ID", "KONSOLE_VERSION", "WT_SESSION"),
    *("GHOSTTY_RESOURCES_DIR", "ITERM_SESSION_ID", "TMUX"),
)
_REFLOWING_PROGRAMS = ("Apple_Terminal", "vscode", "iTerm.app", "WezTerm", "ghostty")
_REFLOWING_TERMS = ("foot", "alacritty", "xterm-kitty", "xterm-ghostty", "wezterm", "contour")  # Seen through ssh, too.
# What does not, and may have been started in one that does.
_NOT_REFLOWING_VARIABLES = ("STY", "XTERM_VERSION", "INSIDE_EMACS", "NVIM", "VIM_TERMINAL")


class TerminalSize(NamedTuple):
    """Columns and rows of a terminal."""

    columns: int
    rows: int

    @property
    def tail_rows(self) -> int:
        """Rows that the tail may have."""
        return max(1, min(_MAX_TAIL_ROWS, self.rows // 3))


def terminal_size(stream: TextIO) -> TerminalSize:
    """The size of the terminal behind `stream`, asked anew each time; 80 by 24 where it does not say."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        columns, rows = 0, 0
    return TerminalSize(columns or 80, rows or 24)


def reflows(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the terminal is one that breaks lines anew when it becomes narrower.

    False where that is in doubt: rows of a tail are then left behind by a resize, instead of rows above it erased.
    """
    term = environment.get("TERM", "")
    if "TMUX" in environment and term.startswith(("tmux", "screen")):
        return "STY" not in environment
    if any(name in environment for name in _NOT_REFLOWING_VARIABLES):
        return False
    known = any(name in environment for name in _REFLOWING_VARIABLES) or term.startswith(_REFLOWING_TERMS)
    return known or environment.get("TERM_PROGRAM") in _REFLOWING_PROGRAMS


class FrameLimiter:
    """Says when a frame may be drawn: at once after a pause, and never more than FRAMES_PER_SECOND in a second.

    Not while the window changes: a frame that is drawn for a size which the terminal no longer has, or not yet, would
    erase what is above its tail, or leave rows of it behind.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._credit = float(_BURST_FRAMES)
        self._last_check = clock()
        self._size: TerminalSize | None = None
        self._settled_at = self._last_check  # When the size can be relied on.

    def may_draw(self, size: TerminalSize) -> bool:
        """Whether a frame may be drawn now, on a terminal of this size; then it counts as drawn."""
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
        """Seconds until a frame can be drawn if the size stays `size`."""
        now = self._clock()
        if size != self._size:
            self._settled_at = now if self._size is None else now + _SETTLING_SECONDS
            self._size = size
        return max(0.0, self._settled_at - now)


class LiveTail:
    """Draws frames on `out`.

    Args:
        out: a terminal.
        reflowing: whether it breaks lines anew when it becomes narrower.
    """

    def __init__(self, out: TextIO, *, reflowing: bool) -> None:
        self._out = out
        self._reflowing = reflowing
        self._tail: Sequence[StyledRow] = ()

    def draw(self, rows: Sequence[StyledRow], tail: Sequence[StyledRow], size: TerminalSize) -> None:
        """Print `rows` for good and draw `tail` below; nothing where nothing has changed."""
        tail = tail[-size.tail_rows :]
        if not rows and list(tail) == list(self._tail):
            return
        parts = [_BEGIN_SYNC, self._cursor_to_start(size), _ERASE_BELOW]
        parts += [row.to_ansi() + "\n" for row in rows]
        parts += ["\n".join(self._tail_row(row, size) for row in tail), _END_SYNC]
        self._tail = tail
        self._out.write("".join(parts))
        self._out.flush()

    def detach(self) -> None:
        """Something else was written below the tail, which stays where it is: the next frame begins anew."""
        self._tail = ()

    def _tail_row(self, row: StyledRow, size: TerminalSize) -> str:
        """A row of the tail, which must take as many rows on the screen as `_cursor_to_start` will count."""
        if not row.text or (self._reflowing and max_cell_width(row.text) <= size.columns):
            # Where the window has become narrower unbeknown to us it takes as many as if it had done so afterwards.
            return row.to_ansi()
        return f"{_NO_WRAP}{row.to_ansi()}{_WRAP}"

    def _cursor_to_start(self, size: TerminalSize) -> str:
        """Moves the cursor from the end of the tail that is on the screen to its first row."""
        above = len(self._tail) - 1
        if self._reflowing:
            above = sum(len(break_at_cells(row.segments, size.columns)) for row in self._tail) - 1
        above = min(above, size.rows - 1)
        return f"\x1b[{above}A" if above > 0 else ""
