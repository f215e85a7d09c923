"""Layout of tables: cells in columns, wrapped in a narrow terminal, or one record of lines for each row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from qwchat.markdown.inline import inline_segments
from qwchat.markdown.styled_text import Segment, StyledRow, cell_width, widest_word, wrap_segments
from qwchat.markdown.styles import BOLD, DIM

Alignment = Literal["left", "right", "centre"]
Cell = list[Segment]

_COLUMN_SEPARATOR = " │ "
_MIN_COLUMN = 8  # If a column would be narrower, rows are shown as records.
_MAX_STYLED_ROW = 2000  # Characters; finding markup takes quadratic time.
_INDENT = 2  # Columns before continuation lines of a value.


def split_row(source: str) -> list[str]:
    """Return the sources of the cells of a row. A pipe after a backslash belongs to its cell."""
    from markdown_it.rules_block.table import escapedSplit

    source = source.strip()
    parts = escapedSplit(source)
    if len(parts) > 1 and not parts[0].strip():
        del parts[0]
    if len(parts) > 1 and not parts[-1].strip():
        del parts[-1]
    return [part.strip().replace("\t", " ") for part in parts]


def parse_alignments(delimiters: str) -> tuple[Alignment, ...]:
    """Return the alignment of each column, from the row under the head."""
    alignments: list[Alignment] = []
    for mark in re.findall(r":?-+:?", delimiters):
        right: Alignment = "centre" if mark.startswith(":") else "right"
        alignments.append(right if mark.endswith(":") else "left")
    return tuple(alignments)


def styled_cells(source: str, *, colour: bool, head: bool = False) -> tuple[Cell, ...]:
    """Return the cells of a row as styled text, or as plain text if the row is very long."""
    if len(source) > _MAX_STYLED_ROW:
        return tuple([(part, "")] if part else [] for part in split_row(source))
    return tuple(inline_segments(part, colour=colour, base=BOLD if head else "") for part in split_row(source))


class FittedGrid(NamedTuple):
    """Table that fits: the widths of its columns, and its rows, of which the first two are the head and a rule."""

    widths: list[int]
    rows: list[StyledRow]


def fit_grid(
    rows: Sequence[Sequence[Cell]], alignments: Sequence[Alignment], width: int | None, max_lines: int
) -> FittedGrid | None:
    """Return the table as a grid, or None if it does not fit.

    A grid does not fit if it would break words or need more than `max_lines` lines for a row. Adding rows never makes
    it fit again. Rows may have fewer or more cells than the head; all cells are shown.

    Args:
        rows: The head and the rows.
        alignments: Alignment of each column.
        width: Available columns; None for no limit.
        max_lines: Maximum height of a row.
    """
    count = max(len(row) for row in rows)
    padded = [_pad_cells(row, count) for row in rows]
    natural = [max(1, *(_cell_width(row[column]) for row in padded)) for column in range(count)]
    widths = natural if width is None else _narrow_columns(natural, width - len(_COLUMN_SEPARATOR) * (count - 1))
    if widths is None or (width is not None and any(breaks_words(row, widths) for row in padded)):
        return None
    lines: list[StyledRow] = []
    for number, row in enumerate(padded):
        shown = grid_row(row, alignments, widths)
        if number and len(shown) > max_lines and width is not None:
            return None
        lines += [*shown, header_rule(widths)] if number == 0 else shown
    return FittedGrid(widths, lines)


def spread_widths(widths: list[int], alignments: Sequence[Alignment], width: int) -> list[int]:
    """Return `widths` with the rest of `width` distributed, so that later rows may have wider cells.

    Each column gets up to half its width more. A left-aligned last column gets all that remains.
    """
    left = width - table_width(widths)
    wider = []
    for size in widths:
        more = max(0, min(left, size // 2))
        wider.append(size + more)
        left -= more
    if alignments[len(widths) - 1 : len(widths)] in ((), ("left",)):
        wider[-1] += max(0, left)
    return wider


def table_width(widths: Sequence[int]) -> int:
    """Return the columns that a grid takes."""
    return sum(widths) + len(_COLUMN_SEPARATOR) * (len(widths) - 1)


def header_rule(widths: Sequence[int]) -> StyledRow:
    """Return the line under the head."""
    return StyledRow((("─┼─".join("─" * size for size in widths), DIM),))


def grid_row(row: Sequence[Cell], alignments: Sequence[Alignment], widths: Sequence[int]) -> list[StyledRow]:
    """Return one row of the table, with as many lines as its tallest cell. Extra cells join the last column."""
    more: list[Alignment] = ["left"] * len(widths)
    return _align_row(_pad_cells(row, len(widths)), list(widths), [*alignments, *more][: len(widths)])


def breaks_words(row: Sequence[Cell], widths: Sequence[int]) -> bool:
    """Return True if a word of the row is wider than its column."""
    padded = _pad_cells(row, len(widths))
    return any(widest_word("".join(text for text, _ in cell)) > size for cell, size in zip(padded, widths, strict=True))


def _pad_cells(row: Sequence[Cell], count: int) -> list[Cell]:
    """Return exactly `count` cells: missing cells are empty, and extra cells join the last one."""
    padded = [*row[:count], *([] for _ in range(count - len(row)))]
    for extra in row[count:]:
        padded[-1] = [*padded[-1], (_COLUMN_SEPARATOR, DIM), *extra]
    return padded


def widen_columns(row: Sequence[Cell], widths: Sequence[int]) -> list[int]:
    """Return `widths`, widened where a cell of the row is wider. Used if nothing is wrapped."""
    padded = _pad_cells(row, len(widths))
    return [max(size, _cell_width(cell)) for size, cell in zip(widths, padded, strict=True)]


def record_rows(head: Sequence[Cell], row: Sequence[Cell], width: int) -> list[StyledRow]:
    """Return one row of the table as lines `header: value`, with continuation lines indented by two columns.

    A cell without a header stands alone. A header without a value is shown too.
    """
    lines: list[StyledRow] = []
    labels = [*head[: len(row)], *([] for _ in range(len(row) - len(head)))]
    for label, value in zip(labels, row, strict=True):
        named = "".join(text for text, _ in label)
        colon = [] if not named or named.endswith((":", "：")) else [(":", BOLD)]
        blank = [(" ", "")] if named and value else []
        segments = [*label, *colon, *blank, *value]
        if not segments:
            continue
        indent = _INDENT if width > 4 * _INDENT else 0
        shown = wrap_segments(segments, width)
        if len(shown) > 1:
            shown = wrap_segments(segments, width - indent)
        lines += shown[:1]
        lines += [row if row.soft else StyledRow(((" " * indent, ""), *row.segments)) for row in shown[1:]]
    return lines


def _cell_width(cell: Cell) -> int:
    return cell_width("".join(text for text, _ in cell))


def _narrow_columns(natural: list[int], available: int) -> list[int] | None:
    """Return column widths that add up to at most `available`, narrowing the widest first, or None."""
    widths = list(natural)
    if sum(min(size, _MIN_COLUMN) for size in widths) > available:
        return None
    while sum(widths) > available:
        widest = max(widths)
        next_widest = max((size for size in widths if size < widest), default=0)
        many = widths.count(widest)
        excess = sum(widths) - available
        lower = max(next_widest, _MIN_COLUMN, widest - -(-excess // many))
        for column, size in enumerate(widths):
            if size == widest and excess > 0:
                widths[column] = lower
                excess -= widest - lower
    return widths


def _align_row(row: Sequence[Cell], widths: list[int], alignments: list[Alignment]) -> list[StyledRow]:
    parts = [wrap_segments(cell, size, strict=True) for cell, size in zip(row, widths, strict=True)]
    lines: list[StyledRow] = []
    for number in range(max(len(part) for part in parts)):
        segments: list[Segment] = []
        for column, part in enumerate(parts):
            cell = part[number] if number < len(part) else StyledRow(())
            left, right = _padding(widths[column] - cell_width(cell.text), alignments[column])
            gap = [(_COLUMN_SEPARATOR, DIM)] if column else []
            segments += [*gap, (left, ""), *cell.segments, (right, "")]
        lines.append(StyledRow(_strip_end(segments)))
    return lines


def _padding(available: int, alignment: Alignment) -> tuple[str, str]:
    left = {"left": 0, "right": available, "centre": available // 2}[alignment]
    return " " * left, " " * (available - left)


def _strip_end(segments: list[Segment]) -> tuple[Segment, ...]:
    """Return the segments without trailing spaces and without empty segments."""
    kept = [segment for segment in segments if segment[0]]
    while kept and not kept[-1][0].strip():
        kept.pop()
    if kept:
        kept[-1] = (kept[-1][0].rstrip(), kept[-1][1])
    return tuple(kept)
