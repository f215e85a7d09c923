"""A terminal emulator behind a text stream."""

from __future__ import annotations

import io
import re

import pyte


class EmulatedTerminal(io.StringIO):
    """Text stream that draws on an emulated screen with scrollback, and keeps every write.

    Newlines also return the carriage, as with a terminal driver.

    Args:
        columns: Width.
        rows: Height.
        history: Rows of scrollback; the emulator is much faster without any.
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
        """Rows on the screen and above it, without trailing spaces and trailing blank rows."""
        screen = self.screen
        above = screen.history.top if isinstance(screen, pyte.HistoryScreen) else ()
        rows = [*above, *(screen.buffer[row] for row in range(screen.lines))]
        lines = ["".join(row[column].data for column in range(screen.columns)).rstrip() for row in rows]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def state(self) -> tuple[object, ...]:
        """State that a program must restore: modes, title, margins, character sets, cursor, tab stops, style."""
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


class ReflowingTerminal(io.StringIO):
    """Terminal that reflows lines when its size changes, as tmux does, for text with one column per character.

    It supports the sequences that frames use. Erasing from the top left corner counts as clearing the screen, which
    copies it to the scrollback.
    """

    _PIECE = re.compile(r"\x1b\[(\??)(\d*)([ACJKhl])|\x1b\[[\d;]*m|\r|\n|[^\x1b\r\n]")

    def __init__(self, columns: int = 40, rows: int = 12) -> None:
        super().__init__()
        self.columns, self.rows = columns, rows
        self._lines = [""]
        self._wrapped = [False]  # Whether each line continues in the next one.
        self._line = self._column = self._top = 0
        self._wraps = True

    @property
    def text(self) -> str:
        """All text on the screen and above it, with lines joined that the terminal wrapped."""
        lines = zip(self._lines, self._wrapped, strict=True)
        return "".join(line + ("" if wrapped else "\n") for line, wrapped in lines).rstrip("\n")

    def write(self, text: str) -> int:
        assert "".join(match[0] for match in self._PIECE.finditer(text)) == text
        for match in self._PIECE.finditer(text):
            if match[3]:
                self._handle(match[3], match[1] + match[2])
            elif match[0] == "\r":
                self._column = 0
            elif match[0] == "\n":
                self._next_line()
            elif match[0][0] != "\x1b":
                self._write_character(match[0])
        return len(text)

    def resize(self, columns: int, rows: int) -> None:
        """Reflow all lines. The cursor stays after the same character, and the end of the text stays visible."""
        lines, wrapped, place = [""], [False], (0, 0)
        for number, line in enumerate(self._lines[: self._line + 1]):
            if number == self._line:
                place = len(lines) - 1, len(lines[-1]) + self._column
            whole = lines[-1] + line
            pieces = [whole[start : start + columns] for start in range(0, len(whole), columns)] or [""]
            lines[-1:], wrapped[-1:] = pieces, [True] * (len(pieces) - 1) + [False]
            if not self._wrapped[number]:
                lines.append("")
                wrapped.append(False)
        self._lines, self._wrapped = lines[:-1], wrapped[:-1]
        self._line, self._column = place[0] + (place[1] - 1) // columns if place[1] else place[0], 0
        self._column = place[1] - (self._line - place[0]) * columns
        self.columns, self.rows, self._top = columns, rows, max(0, len(self._lines) - rows)

    def _handle(self, command: str, number: str) -> None:
        if command == "A":
            self._line = max(self._top, self._line - int(number or 1))
        elif command == "C":
            self._column = min(self._column + int(number or 1), self.columns - 1)
        elif command == "K" or (command == "J" and (self._line, self._column) != (self._top, 0)):
            self._lines[self._line] = self._lines[self._line][: self._column]
            self._wrapped[self._line] = False
            for below in range(self._line + 1, len(self._lines) if command == "J" else 0):
                self._lines[below], self._wrapped[below] = "", False
        elif command == "J":
            for _ in range(self.rows):
                self._next_line()
            self._top = self._line
        elif number == "?7":
            self._wraps = command == "h"

    def _next_line(self, *, wrapped: bool = False) -> None:
        self._wrapped[self._line] = wrapped
        self._line += 1
        self._column = 0
        self._top = max(self._top, self._line - self.rows + 1)
        if self._line == len(self._lines):
            self._lines.append("")
            self._wrapped.append(False)

    def _write_character(self, character: str) -> None:
        if self._column == self.columns:
            if self._wraps:
                self._next_line(wrapped=True)
            else:
                self._column -= 1
        line = self._lines[self._line].ljust(self._column)
        self._lines[self._line] = line[: self._column] + character + line[self._column + 1 :]
        self._column += 1
