"""A terminal emulator behind a text stream."""

from __future__ import annotations

import io

import pyte


class Emulated(io.StringIO):
    """A stream that draws on a screen with scrollback, and keeps every write.

    Newlines return the carriage, as a terminal driver makes them do. ``history``: rows of scrollback; the emulator is
    much faster without.
    """

    def __init__(self, columns: int = 40, rows: int = 12, history: int = 20_000) -> None:
        super().__init__()
        self.screen = pyte.HistoryScreen(columns, rows, history, 0.5) if history else pyte.Screen(columns, rows)
        self._stream = pyte.Stream(self.screen)
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        self._stream.feed(text.replace("\n", "\r\n"))
        return len(text)

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        """What is on the screen and above it, without blanks at the ends of lines and blank lines at the end."""
        screen = self.screen
        above = screen.history.top if isinstance(screen, pyte.HistoryScreen) else ()
        rows = [*above, *(screen.buffer[row] for row in range(screen.lines))]
        lines = ["".join(row[column].data for column in range(screen.columns)).rstrip() for row in rows]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def state(self) -> tuple[object, ...]:
        """What a program must leave as it was: modes, title, margins, character sets, cursor, tab stops, style."""
        screen = self.screen
        cursor = screen.cursor
        return (
            frozenset(screen.mode),
            screen.title,
            screen.icon_name,
            screen.margins,
            (screen.charset, screen.g0_charset, screen.g1_charset),
            (cursor.hidden, cursor.attrs._replace(data=" ")),
            frozenset(screen.tabstops),
            len(screen.savepoints),
        )
