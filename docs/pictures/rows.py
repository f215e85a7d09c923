"""Rows of a terminal as styled runs of text: pictures are drawn from them and compared by them."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from pyte.screens import Char, Screen

# The sixteen colours of the picture, by the emulator's names.
BACKGROUND, FOREGROUND = "#1c2029", "#d7dce5"
COLOURS = {
    "black": "#3b4252",
    "red": "#f0717b",
    "green": "#93cc7e",
    "brown": "#e6c26c",
    "blue": "#6fb1f5",
    "magenta": "#cf8fe8",
    "cyan": "#5fc5cf",
    "white": "#d7dce5",
    "brightblack": "#8b95a7",
    "brightred": "#ff8f97",
    "brightgreen": "#aee39a",
    "brightbrown": "#f4d88a",
    "brightyellow": "#f4d88a",
    "brightblue": "#95c8ff",
    "brightmagenta": "#e0aff4",
    "brightcyan": "#86dde6",
    "brightwhite": "#ffffff",
}


class Style(NamedTuple):
    """Look of a run: colours as #rrggbb, None for the terminal's own; `marks` names what else it is, as "bold"."""

    colour: str | None = None
    background: str | None = None
    marks: str = ""


class Run(NamedTuple):
    """Text of one style in the columns from `column` on."""

    column: int
    text: str
    style: Style


Row = tuple[Run, ...]


class Emulator(Screen):
    """pyte's screen, which also knows faint letters. They are kept as blinking ones, which the program never writes."""

    def select_graphic_rendition(self, *attrs: int, **options: bool) -> None:
        """Take SGR attributes; 2 is faint, and 0 and 22 end it."""
        super().select_graphic_rendition(*attrs, **options)
        faint = self.cursor.attrs.blink
        if 38 in attrs or 48 in attrs:  # What follows are colours.
            return
        for attribute in attrs or (0,):
            faint = attribute == 2 or (faint and attribute not in (0, 22))
        self.cursor.attrs = self.cursor.attrs._replace(blink=faint)


def rows_of(screen: Screen, *, cursor: bool = False) -> tuple[Row, ...]:
    """Return the rows of the screen up to the last one with anything on it; `cursor` shows the cursor, too."""
    shown = cursor and not screen.cursor.hidden
    rows = [
        _row(screen, number, screen.cursor.x if shown and number == screen.cursor.y else None)
        for number in range(screen.lines)
    ]
    while rows and not rows[-1]:
        rows.pop()
    return tuple(rows)


def _row(screen: Screen, number: int, cursor: int | None) -> Row:
    line = screen.buffer[number]
    cells = [(column, line[column]) for column in range(screen.columns) if line[column].data]
    styled = [(column, cell.data, _style(cell, reverse=cell.reverse != (column == cursor))) for column, cell in cells]
    runs = []
    for style, members in groupby(styled, key=lambda cell: cell[2]):
        run = list(members)
        text = "".join(data for _, data, _ in run)
        first = run[0][0]
        if not style.background and not {"underline", "strike"} & set(style.marks.split()):
            first += len(text) - len(text.lstrip(" "))
            text = text.strip(" ")
        if text:
            runs.append(Run(first, text, style))
    return tuple(runs)


def _style(cell: Char, *, reverse: bool) -> Style:
    colour, background = _colour(cell.fg), _colour(cell.bg)
    if reverse:
        colour, background = background or BACKGROUND, colour or FOREGROUND
    marks = (
        ("bold", cell.bold),
        ("faint", cell.blink),
        ("italic", cell.italics),
        ("underline", cell.underscore),
        ("strike", cell.strikethrough),
    )
    return Style(colour, background, " ".join(name for name, there in marks if there))


def _colour(name: str) -> str | None:
    return None if name == "default" else COLOURS.get(name, f"#{name}")
