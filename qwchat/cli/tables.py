"""Tables and lists of values: drawn by Rich on a terminal, plain columns everywhere else."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qwchat.characters import sanitise, sanitise_name
from qwchat.chat.view.colour import ColourChoice, styling_of
from qwchat.chat.view.table import format_pairs, format_table
from qwchat.chat.view.tail import terminal_size
from qwchat.chat.view.word_wrap import wrap_message
from qwchat.cli.streams import Streams
from qwchat.errors import QwchatError
from qwchat.markdown.styled_text import break_at_cells, cell_width
from qwchat.markdown.styles import DIM
from qwchat.settings.resolve import resolve

_GAP = 2
_MIN_WINDOW = 20  # In a narrower window a table of several columns has no readable form.
_PATH_PARTS, _NAME_PARTS = re.compile(r" */*[^/]+/*|/+"), re.compile(r"[^._,-]*[._,-]+|[^._,-]+")


@dataclass(frozen=True)
class Column:
    """Column of a table.

    Attributes:
        head: title of the column; a table in which every title is empty has no row of titles.
        right: align the cells on the right.
        wrap: break long cells into several lines, down to this many terminal columns; 0 never breaks them.
        drop: order in which columns are left out of a table that is too wide: 1 first, 0 never.
        style: Rich style of all cells.
        styles: Rich styles of cells with a certain text.
    """

    head: str = ""
    right: bool = False
    wrap: int = 0
    drop: int = 0
    style: str = ""
    styles: Mapping[str, str] = field(default_factory=dict)


class TableWriter:
    """Formats tables for standard output, be it a terminal or a pipe.

    The settings `color` and `plain` count if they can be read. A mistake in a settings file must not stop commands that
    list models or report mistakes.

    Attributes:
        drawn: whether Rich draws the tables. If not, they are plain columns.
    """

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._styling = streams.out_styling
        self._columns = 0
        self.drawn = False
        if self._styling.terminal and (streams.out.encoding or "").lower().startswith("utf"):
            choice, plain = _colour_settings()
            self._styling = styling_of(streams.out, choice)
            self._columns = terminal_size(streams.out).columns
            self.drawn = not plain and self._columns >= _MIN_WINDOW

    def write(self, *parts: str) -> None:
        """Write formatted parts to standard output, with an empty line between them."""
        (self._streams.write_styled if self.drawn else self._streams.write)("\n\n".join(parts) + "\n")

    def table(
        self, columns: Sequence[Column], rows: Sequence[Sequence[str]], row_styles: Mapping[int, str] | None = None
    ) -> str:
        """Return a table.

        Args:
            columns: its columns.
            rows: texts of the cells. Control characters are made visible.
            row_styles: Rich styles of some rows, by number.
        """
        if not self.drawn:
            right = [number for number, column in enumerate(columns) if column.right]
            return format_table([column.head for column in columns], rows, right)
        safe = [[sanitise_name(cell) for cell in row] for row in rows]
        kept, widths = fit(columns, safe, self._columns)
        cells = [[wrap_cell(row[number], widths[number]) for number in kept] for row in safe]
        drawn = self._draw([replace(columns[number], wrap=widths[number]) for number in kept], cells, row_styles or {})
        dropped = [number for number in range(len(columns)) if number not in kept and any(row[number] for row in safe)]
        if dropped:
            names = ", ".join(columns[number].head for number in dropped)
            note = wrap_message(f"columns not shown: {names}", self._columns)
            drawn += "\n" + self._styling.styled(note, DIM)
        return drawn

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> str:
        """Return names and their values, one pair per row."""
        return self.table((Column(style="bold"), Column(wrap=12)), pairs) if self.drawn else format_pairs(pairs)

    def paragraph(self, text: str) -> str:
        """Return text that is wrapped to the window where tables are drawn."""
        return wrap_message(sanitise(text), self._columns) if self.drawn else text

    def _draw(self, columns: Sequence[Column], rows: Sequence[Sequence[str]], row_styles: Mapping[int, str]) -> str:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold",
            show_header=any(column.head for column in columns), border_style="dim",
        )  # fmt: skip
        for column in columns:
            table.add_column(
                Text(column.head),
                justify="right" if column.right else "left",
                style=column.style,
                width=column.wrap,
                overflow="fold",
            )
        for number, row in enumerate(rows):
            cells = [
                Text(cell, style=column.styles.get(cell, ""), overflow="fold")
                for column, cell in zip(columns, row, strict=True)
            ]
            table.add_row(*cells, style=row_styles.get(number))
        out = io.StringIO()
        styling = self._styling
        console = Console(
            file=out,
            width=max(self._columns, sum(column.wrap + _GAP for column in columns)),
            force_terminal=True,
            color_system="standard" if styling.emphasis or styling.colour else None,
            no_color=not styling.colour,
            legacy_windows=False,
        )
        console.print(table)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def fit(columns: Sequence[Column], rows: Sequence[Sequence[str]], available: int) -> tuple[list[int], dict[int, int]]:
    """Fit a table into a window: wrap the columns that may be, then leave out those that matter least.

    Args:
        columns: of the table.
        rows: texts of the cells.
        available: columns of the terminal.

    Returns:
        Numbers of the columns that stay, and the width of each. An empty column that may be left out does not stay.
    """
    natural = [
        max(cell_width(text) for text in (column.head, *(row[number] for row in rows)))
        for number, column in enumerate(columns)
    ]
    kept = [number for number, column in enumerate(columns) if not column.drop or any(row[number] for row in rows)]
    least = {number: min(natural[number], column.wrap or natural[number]) for number, column in enumerate(columns)}
    while _total([least[number] for number in kept]) > available:
        droppable = [number for number in kept if columns[number].drop]
        if not droppable:
            least = {number: min(least[number], 4) for number in kept}
            break
        kept.remove(min(droppable, key=lambda number: columns[number].drop))
    widths = {number: natural[number] for number in kept}
    while _total(widths.values()) > available:
        shrinkable = [number for number in kept if widths[number] > least[number]]
        if not shrinkable:
            break
        widths[max(shrinkable, key=widths.__getitem__)] -= 1
    return kept, widths


def wrap_cell(text: str, width: int) -> str:
    """Break the text of a cell into lines of at most `width` columns, at blanks or within paths and dotted names."""
    return "\n".join(_lines(text, width)) if cell_width(text) > width else text


def _lines(text: str, width: int) -> Iterator[str]:
    line = ""
    for word in re.findall(r" *[^ ]+", text):
        fits = cell_width(word.lstrip(" ")) <= width
        parts = _PATH_PARTS if "/" in word else _NAME_PARTS
        for unit in [word] if fits else parts.findall(word):
            if cell_width(line + unit) <= width:
                line += unit
                continue
            if line.strip(" "):
                yield line.rstrip(" ")
            *full, last = [row.text for row in break_at_cells([(unit.lstrip(" "), "")], width)]
            yield from full
            line = last
    if line.strip(" "):
        yield line


def _colour_settings() -> tuple[ColourChoice, bool]:
    """Return the settings `color` and `plain`, or their defaults if there is a mistake in the settings."""
    try:
        settings = resolve()
    except QwchatError:
        return "auto", False
    return settings["color"], settings["plain"]


def _total(widths: Collection[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)
