"""Lines of the program's own text, broken between words where the window is too narrow for them."""

from __future__ import annotations

import re

from qwchat.markdown.styled_text import cell_width, wrap_segments

_MIN_COLUMNS = 20  # Below, breaking between words would leave little of a row.
_MIN_TEXT_COLUMN = 12  # What goes on below a narrower column would have a word or two to a row.
_INDENT = 2
_COLUMN = re.compile(r"\S {2,}(?=\S)")


def wrap_message(text: str, columns: int) -> str:
    """`text` with no line wider than `columns`, save for words that are.

    What does not fit of a line goes on below its last column where blanks make columns, a little further in where that
    column is narrow, and below its beginning elsewhere.
    """
    if columns < _MIN_COLUMNS:
        return text
    return "\n".join(_wrap_line(line, columns) for line in text.split("\n"))


def _wrap_line(line: str, columns: int) -> str:
    if cell_width(line) <= columns or "\t" in line:
        return line
    head = line[: _hanging_prefix(line, columns)]
    indent = cell_width(head)
    if head.strip() and columns - indent < _MIN_TEXT_COLUMN:
        head, indent = "", _INDENT
    first, *rest = wrap_segments([(line[len(head) :], "")], columns - indent)
    return "\n".join([head + first.text, *(" " * indent + row.text.lstrip(" ") for row in rest)])


def _hanging_prefix(line: str, columns: int) -> int:
    """Characters of `line` before the part below which it goes on."""
    ends = [match.end() for match in _COLUMN.finditer(line) if cell_width(line[: match.end()]) <= columns * 2 // 3]
    return ends[-1] if ends else len(line) - len(line.lstrip(" "))
