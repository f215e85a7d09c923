"""Tables in replies: cells in columns, wrapped where the terminal is narrow, or a record of lines for each row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from qwchat.markdown.inline import inline
from qwchat.markdown.styles import BOLD, DIM
from qwchat.markdown.width import Row, Segment, cells, widest_word, wrapped

Alignment = Literal["left", "right", "centre"]
Cell = list[Segment]

_GAP = " │ "
_LEAST_COLUMN = 8  # A column is not wrapped to less: the rows are then shown as records.
_LONGEST_ROW = 2000  # Characters; finding markup takes time that grows with their square.
_INDENT = 2  # columns, of the lines of a value after the first


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
    """The cells of a row as styled text; those of a very long row as they were written."""
    if len(source) > _LONGEST_ROW:
        return tuple([(part, "")] if part else [] for part in split_row(source))
    return tuple(inline(part, colour=colour, base=BOLD if head else "") for part in split_row(source))


class Fitted(NamedTuple):
    """A table that fits: the widths of its columns, and its rows, the first two of which are the head and a rule."""

    widths: list[int]
    rows: list[Row]


def fitted(
    rows: Sequence[Sequence[Cell]], columns: Sequence[Alignment], width: int | None, tallest: int
) -> Fitted | None:
    """The table as a grid of at most `width` columns (None: as wide as it is), the first of `rows` as its head.

    None where that would break words, or make a row of more than `tallest` lines. Once that is so, it is so for any
    further rows. Rows may be shorter or longer than the head: nothing of them is left out.
    """
    count = max(len(row) for row in rows)
    filled = [_filled(row, count) for row in rows]
    natural = [max(1, *(_cell_width(row[column]) for row in filled)) for column in range(count)]
    widths = natural if width is None else _narrowed(natural, width - len(_GAP) * (count - 1))
    if widths is None or (width is not None and any(breaks_words(row, widths) for row in filled)):
        return None
    lines: list[Row] = []
    for number, row in enumerate(filled):
        shown = grid_row(row, columns, widths)
        if number and len(shown) > tallest and width is not None:
            return None
        lines += [*shown, rule(widths)] if number == 0 else shown
    return Fitted(widths, lines)


def spread(widths: list[int], columns: Sequence[Alignment], width: int) -> list[int]:
    """`widths` with what is left of `width`, for wider cells that may follow: up to half more for each column, and
    all the rest for a last one that begins at the left."""
    left = width - table_width(widths)
    wider = []
    for size in widths:
        more = max(0, min(left, size // 2))
        wider.append(size + more)
        left -= more
    if columns[len(widths) - 1 : len(widths)] in ((), ("left",)):
        wider[-1] += max(0, left)
    return wider


def table_width(widths: Sequence[int]) -> int:
    """Columns that a grid takes."""
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def rule(widths: Sequence[int]) -> Row:
    """The line under the head."""
    return Row((("─┼─".join("─" * size for size in widths), DIM),))


def grid_row(row: Sequence[Cell], columns: Sequence[Alignment], widths: Sequence[int]) -> list[Row]:
    """One row of the table, as many lines as its highest cell has. Cells beyond `widths` stand in the last column."""
    more: list[Alignment] = ["left"] * len(widths)
    return _lines(_filled(row, len(widths)), list(widths), [*columns, *more][: len(widths)])


def breaks_words(row: Sequence[Cell], widths: Sequence[int]) -> bool:
    """Whether a word of the row is wider than its column."""
    filled = _filled(row, len(widths))
    return any(widest_word("".join(text for text, _ in cell)) > size for cell, size in zip(filled, widths, strict=True))


def _filled(row: Sequence[Cell], count: int) -> list[Cell]:
    """`count` cells: empty ones where there are fewer, and further ones in the last."""
    filled = [*row[:count], *([] for _ in range(count - len(row)))]
    for extra in row[count:]:
        filled[-1] = [*filled[-1], (_GAP, DIM), *extra]
    return filled


def widened(row: Sequence[Cell], widths: Sequence[int]) -> list[int]:
    """`widths`, where nothing is wrapped, for a row with wider cells."""
    filled = _filled(row, len(widths))
    return [max(size, _cell_width(cell)) for size, cell in zip(widths, filled, strict=True)]


def record(head: Sequence[Cell], row: Sequence[Cell], width: int) -> list[Row]:
    """One row of the table as lines `header: value`; what does not fit goes on two columns further in.

    A cell without a header stands alone, and a header without a value shows that there is none.
    """
    lines: list[Row] = []
    labels = [*head[: len(row)], *([] for _ in range(len(row) - len(head)))]
    for label, value in zip(labels, row, strict=True):
        named = "".join(text for text, _ in label)
        colon = [] if not named or named.endswith((":", "：")) else [(":", BOLD)]
        blank = [(" ", "")] if named and value else []
        segments = [*label, *colon, *blank, *value]
        if not segments:
            continue
        indent = _INDENT if width > 4 * _INDENT else 0
        shown = wrapped(segments, width)
        if len(shown) > 1:
            shown = wrapped(segments, width - indent)
        lines += shown[:1]
        lines += [row if row.soft else Row(((" " * indent, ""), *row.segments)) for row in shown[1:]]
    return lines


def _cell_width(cell: Cell) -> int:
    return cells("".join(text for text, _ in cell))


def _narrowed(natural: list[int], room: int) -> list[int] | None:
    """Widths of the columns that add up to at most `room`: the widest give way first."""
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
