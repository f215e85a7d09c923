"""Streamed table: held back while it is small, then printed row by row, in columns or as records.

Columns are used as long as they break no words, and records from then on: more rows never make columns possible again,
so records are printed as they arrive. A grid is held back until it is taller than the live tail. Then its column widths
are fixed, with space for wider cells, and its rows are printed. A later row in which a word is wider than its column is
printed as a record, and so are all rows after it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from qwchat.markdown.styled_text import StyledRow, wrap_segments
from qwchat.markdown.table_grid import (
    Alignment,
    Cell,
    breaks_words,
    fit_grid,
    grid_row,
    header_rule,
    record_rows,
    spread_widths,
    table_width,
    widen_columns,
)


class TableStream(NamedTuple):
    """State of a streamed table.

    Attributes:
        rows: The head, and the rows that are not printed yet.
        alignments: Alignment of each column.
        form: "held" while nothing is printed, otherwise how rows are printed.
        widths: Column widths of a printed grid.
        has_printed: Whether a record has been printed.
    """

    rows: tuple[tuple[Cell, ...], ...]
    alignments: tuple[Alignment, ...]
    form: Literal["held", "grid", "records"] = "held"
    widths: tuple[int, ...] = ()
    has_printed: bool = False

    def with_row(self, row: tuple[Cell, ...]) -> TableStream:
        """Return the table with another row."""
        return self._replace(rows=(*self.rows, row))

    def flush_rows(self, width: int | None, max_lines: int) -> tuple[TableStream, list[StyledRow]]:
        """Return the table without its final rows, and those rows.

        Args:
            width: Available columns; None if nothing is wrapped.
            max_lines: Lines that may be held back.
        """
        if self.form == "held":
            grid = fit_grid(self.rows, self.alignments, width, max_lines)
            if grid is not None and len(grid.rows) <= max_lines:
                return self, []
            if grid is None:
                return self._replace(form="records").flush_rows(width, max_lines)
            widths = grid.widths if width is None else spread_widths(grid.widths, self.alignments, width)
            started = self._replace(form="grid", widths=tuple(widths))
            head = [*grid_row(self.rows[0], self.alignments, widths), header_rule(widths)]
            return started._without_printed(), [*head, *started._grid_lines(width)]
        if self.form == "grid" and (width is None or self._keeps_columns(width)):
            return self._without_printed(), self._grid_lines(width)
        records = self._replace(form="records", has_printed=self.has_printed or self.form == "grid")
        return records._without_printed(), records._record_lines(width)

    def end(self, width: int | None, max_lines: int) -> list[StyledRow]:
        """Return the remaining rows at the end of the table."""
        if self.form == "held" and (grid := fit_grid(self.rows, self.alignments, width, max_lines)) is not None:
            return grid.rows
        if self.form == "records" and not self.has_printed:  # A table without rows.
            return [row for cell in self.rows[0] for row in wrap_segments(cell, width or 1)]
        return self.flush_rows(width, max_lines)[1]

    def resumed(self, width: int | None, max_lines: int) -> TableStream:
        """Return the table as it continues after everything so far was printed."""
        if self.form == "held":
            grid = fit_grid(self.rows, self.alignments, width, max_lines)
            if grid is None:
                return self._replace(form="records", has_printed=True, rows=self.rows[:1])
            return self._replace(form="grid", widths=tuple(grid.widths), rows=self.rows[:1])
        return self._replace(has_printed=True, rows=self.rows[:1])

    def _keeps_columns(self, width: int) -> bool:
        """Return True if the new rows fit the fixed columns and the window has not become narrower."""
        return table_width(self.widths) <= width and not any(breaks_words(row, self.widths) for row in self.rows[1:])

    def _without_printed(self) -> TableStream:
        return self._replace(rows=self.rows[:1], has_printed=self.has_printed or len(self.rows) > 1)

    def _grid_lines(self, width: int | None) -> list[StyledRow]:
        lines: list[StyledRow] = []
        for row in self.rows[1:]:
            widths = list(self.widths) if width is not None else widen_columns(row, self.widths)
            lines += grid_row(row, self.alignments, widths)
        return lines

    def _record_lines(self, width: int | None) -> list[StyledRow]:
        lines: list[StyledRow] = []
        for number, row in enumerate(self.rows[1:]):
            lines += [StyledRow(())] if number or self.has_printed else []
            lines += record_rows(self.rows[0], row, width or 1)
        return lines
