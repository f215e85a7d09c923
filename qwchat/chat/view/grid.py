"""Tables in replies: cells in columns, wrapped where the terminal is narrow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from qwchat.chat.view.inline import inline
from qwchat.chat.view.terminal import BOLD, DIM
from qwchat.chat.view.width import Row, Segment, cells, wrapped

Alignment = Literal["left", "right", "centre"]
Cell = list[Segment]

_GAP = " │ "
_LEAST_COLUMN = 8  # A column is not wrapped to less: the rows are then shown as they were written.


def split_row(source: str) -> list[str]:
    """The sources of the cells of a row; a pipe behind a backslash belongs to its cell."""
    from markdown_it.rules_block.table import escapedSplit

    source = source.strip()
    parts = escapedSplit(source)
    if len(parts) > 1 and not parts[0].strip():
        del parts[0]
    if len(parts) > 1 and not parts[-1].strip():
        del parts[-1]
    return [part.strip().replace("\t", " ") for part in parts]


def alignments(delimiters: str) -> tuple[Alignment, ...]:
    """What the row under the head says about each column."""
    columns: list[Alignment] = []
    for mark in re.findall(r":?-+:?", delimiters):
        right: Alignment = "centre" if mark.startswith(":") else "right"
        columns.append(right if mark.endswith(":") else "left")
    return tuple(columns)


def styled_cells(source: str, *, colour: bool, head: bool = False) -> tuple[Cell, ...]:
    """The cells of a row as styled text."""
    return tuple(inline(part, colour=colour, base=BOLD if head else "") for part in split_row(source))


def grid(rows: Sequence[Sequence[Cell]], columns: Sequence[Alignment], width: int) -> list[Row] | None:
    """The table as rows of at most ``width`` columns, the first of ``rows`` as its head; None where that is too narrow.

    Rows may be shorter or longer than the head: nothing of them is left out.
    """
    count = max(len(row) for row in rows)
    filled = [[*row, *([] for _ in range(count - len(row)))] for row in rows]
    natural = [max(1, *(_cell_width(row[column]) for row in filled)) for column in range(count)]
    widths = _fitted(natural, width - len(_GAP) * (count - 1))
    if widths is None:
        return None
    more: list[Alignment] = ["left"] * count
    sides = [*columns, *more][:count]
    lines: list[Row] = []
    for number, row in enumerate(filled):
        lines += _lines(row, widths, sides)
        if number == 0:
            lines.append(Row((("─┼─".join("─" * size for size in widths), DIM),)))
    return lines


def _cell_width(cell: Cell) -> int:
    return cells("".join(text for text, _ in cell))


def _fitted(natural: list[int], room: int) -> list[int] | None:
    """Widths of the columns that add up to at most ``room``: the widest give way first."""
    widths = list(natural)
    if sum(min(size, _LEAST_COLUMN) for size in widths) > room:
        return None
    while sum(widths) > room:
        widest = max(widths)
        next_widest = max((size for size in widths if size < widest), default=0)
        many = widths.count(widest)
        excess = sum(widths) - room
        lower = max(next_widest, _LEAST_COLUMN, widest - -(-excess // many))
        for column, size in enumerate(widths):
            if size == widest and excess > 0:
                widths[column] = lower
                excess -= widest - lower
    return widths


def _lines(row: Sequence[Cell], widths: list[int], sides: list[Alignment]) -> list[Row]:
    """One row of the table, as many lines as its highest cell has."""
    parts = [wrapped(cell, size, strict=True) for cell, size in zip(row, widths, strict=True)]
    lines: list[Row] = []
    for number in range(max(len(part) for part in parts)):
        segments: list[Segment] = []
        for column, part in enumerate(parts):
            cell = part[number] if number < len(part) else Row(())
            left, right = _padding(widths[column] - cells(cell.text), sides[column])
            gap = [(_GAP, DIM)] if column else []
            segments += [*gap, (left, ""), *cell.segments, (right, "")]
        lines.append(Row(_stripped(segments)))
    return lines


def _padding(room: int, side: Alignment) -> tuple[str, str]:
    left = {"left": 0, "right": room, "centre": room // 2}[side]
    return " " * left, " " * (room - left)


def _stripped(segments: list[Segment]) -> tuple[Segment, ...]:
    """Without blanks at the end of the line, and without empty pieces."""
    kept = [segment for segment in segments if segment[0]]
    while kept and not kept[-1][0].strip():
        kept.pop()
    if kept:
        kept[-1] = (kept[-1][0].rstrip(), kept[-1][1])
    return tuple(kept)
