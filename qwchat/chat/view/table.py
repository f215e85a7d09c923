"""Plain tables: columns padded with spaces, the same in a pipe as on a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from qwchat.characters import sanitise_name
from qwchat.chat.display import KeyValues, Table
from qwchat.markdown.styled_text import cell_width


def format_table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Return `rows` under `heads`, with two spaces between columns. Each cell stays on one line.

    Args:
        heads: Column headings.
        rows: Cells of each row.
        right: Numbers of the right-aligned columns.
    """
    lines = [[sanitise_name(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(cell_width(line[column]) for line in lines) for column in range(len(heads))]

    def line(parts: Sequence[str]) -> str:
        padded = [
            " " * (width - cell_width(part)) + part if column in right else part + " " * (width - cell_width(part))
            for column, (part, width) in enumerate(zip(parts, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join(map(line, lines))


def format_pairs(facts: Sequence[tuple[str, str]]) -> str:
    """Return names and values, one pair per line, with the values in a column."""
    width = max(cell_width(name) for name, _ in facts)
    return "\n".join(
        f"{name}{' ' * (width - cell_width(name))}  {sanitise_name(value)}".rstrip() for name, value in facts
    )


def format_answer(above: Table | KeyValues | None, text: str) -> str:
    """Return the answer of a command: a table or pairs, if any, above `text`, if it is not empty."""
    if above is None:
        return text
    rows = (
        format_pairs(above.pairs)
        if isinstance(above, KeyValues)
        else format_table(above.heads, above.rows, above.right)
    )
    return f"{rows}\n{text}" if text else rows
