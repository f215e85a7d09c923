"""A table that streams: held back while it is small, then printed row by row in columns or as records.

What it becomes depends on the rows so far: columns, while no word would be broken by them, and records from then on.
Further rows never make columns possible again, so records are printed as they come. A grid is held back until it is
taller than the live tail; then the widths of its columns are fixed, with space for wider cells, and printed rows stay.
A row with a word that is wider than its column is a record, and so are those that follow it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from qwchat.markdown.grid import (
    Alignment,
    Cell,
    breaks_words,
    fitted,
    grid_row,
    record,
    rule,
    spread,
    table_width,
    widened,
)
from qwchat.markdown.width import Row, wrapped


class TableStream(NamedTuple):
    """A table as far as it has come.

    Attributes:
        rows: its head, and the rows that are not printed yet.
        columns: the sides to which they are aligned.
        form: "held" while nothing is printed, or how rows are printed.
        widths: of the columns of a grid that is printed.
        begun: a record has been printed.
    """

    rows: tuple[tuple[Cell, ...], ...]
    columns: tuple[Alignment, ...]
    form: Literal["held", "grid", "records"] = "held"
    widths: tuple[int, ...] = ()
    begun: bool = False

    def plus(self, row: tuple[Cell, ...]) -> TableStream:
        """The table with another row."""
        return self._replace(rows=(*self.rows, row))

    def certain(self, width: int | None, tallest: int) -> tuple[TableStream, list[Row]]:
        """The table without the rows that are certain, and those; `tallest`: lines that may be held back.

        `width`: columns that there are; None where nothing is wrapped.
        """
        if self.form == "held":
            whole = fitted(self.rows, self.columns, width, tallest)
            if whole is not None and len(whole.rows) <= tallest:
                return self, []
            if whole is None:
                return self._replace(form="records").certain(width, tallest)
            widths = whole.widths if width is None else spread(whole.widths, self.columns, width)
            begun = self._replace(form="grid", widths=tuple(widths))
            head = [*grid_row(self.rows[0], self.columns, widths), rule(widths)]
            return begun._printed(), [*head, *begun._grid(width)]
        if self.form == "grid" and (width is None or self._keeps_columns(width)):
            return self._printed(), self._grid(width)
        records = self._replace(form="records", begun=self.begun or self.form == "grid")
        return records._printed(), records._records(width)

    def end(self, width: int | None, tallest: int) -> list[Row]:
        """The rows that are left when the table ends."""
        if self.form == "held" and (whole := fitted(self.rows, self.columns, width, tallest)) is not None:
            return whole.rows
        if self.form == "records" and not self.begun:  # A head alone.
            return [row for cell in self.rows[0] for row in wrapped(cell, width or 1)]
        return self.certain(width, tallest)[1]

    def resumed(self, width: int | None, tallest: int) -> TableStream:
        """The table that goes on after all of it was printed, as it would have ended."""
        if self.form == "held":
            whole = fitted(self.rows, self.columns, width, tallest)
            if whole is None:
                return self._replace(form="records", begun=True, rows=self.rows[:1])
            return self._replace(form="grid", widths=tuple(whole.widths), rows=self.rows[:1])
        return self._replace(begun=True, rows=self.rows[:1])

    def _keeps_columns(self, width: int) -> bool:
        """Whether new rows fit columns of fixed widths: not where a word is wider, or the window became narrower."""
        return table_width(self.widths) <= width and not any(breaks_words(row, self.widths) for row in self.rows[1:])

    def _printed(self) -> TableStream:
        return self._replace(rows=self.rows[:1], begun=self.begun or len(self.rows) > 1)

    def _grid(self, width: int | None) -> list[Row]:
        lines: list[Row] = []
        for row in self.rows[1:]:
            widths = list(self.widths) if width is not None else widened(row, self.widths)
            lines += grid_row(row, self.columns, widths)
        return lines

    def _records(self, width: int | None) -> list[Row]:
        lines: list[Row] = []
        for number, row in enumerate(self.rows[1:]):
            lines += [Row(())] if number or self.begun else []
            lines += record(self.rows[0], row, width or 1)
        return lines
