"""Word wrapping of the program's own messages."""

from __future__ import annotations

import re

from qwchat.markdown.styled_text import cell_width, wrap_segments

_MIN_COLUMNS = 20  # Narrower windows are not word-wrapped.
_MIN_TEXT_COLUMN = 12  # A narrower last column would hold only a word or two per row.
_INDENT = 2
_COLUMN = re.compile(r"\S {2,}(?=\S)")


def wrap_message(text: str, columns: int) -> str:
    """Return `text` with every line wrapped to `columns`, except for words that are longer.

    Continuation lines are indented to the last column of the text if spaces form columns, by two if that column is
    narrow, and as the line itself otherwise. In an indented list whose second column begins too far to the right, that
    column goes below the first.
    """
    if columns < _MIN_COLUMNS:
        return text
    return "\n".join(_wrap_line(line, columns) for line in text.split("\n"))


def _wrap_line(line: str, columns: int) -> str:
    if cell_width(line) <= columns or "\t" in line:
        return line
    head = line[: _hanging_prefix(line, columns)]
    indent = cell_width(head)
    if indent and not head.strip() and (column := _COLUMN.search(line)):
        name, below = line[: column.start() + 1], " " * (indent + 2 * _INDENT) + line[column.end() :]
        return f"{_wrap_line(name, columns)}\n{_wrap_line(below, columns)}"
    if head.strip() and columns - indent < _MIN_TEXT_COLUMN:
        head, indent = "", _INDENT
    first, *rest = wrap_segments([(line[len(head) :], "")], columns - indent)
    return "\n".join([head + first.text, *(" " * indent + row.text.lstrip(" ") for row in rest)])


def _hanging_prefix(line: str, columns: int) -> int:
    """Return the number of characters of `line` before its last column."""
    ends = [match.end() for match in _COLUMN.finditer(line) if cell_width(line[: match.end()]) <= columns * 2 // 3]
    return ends[-1] if ends else len(line) - len(line.lstrip(" "))
