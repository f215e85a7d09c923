"""Plain tables: columns padded with blanks, nothing drawn, the same in a pipe as on a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """``rows`` under ``heads``, two blanks between columns; the columns numbered in ``right`` are right-aligned."""
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join(map(line, (heads, *rows)))


def pairs(facts: Sequence[tuple[str, str]]) -> str:
    """Names and values, the values one below the other."""
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in facts)


def one_line(text: str, limit: int = 60) -> str:
    """``text`` for a cell: on one line, and cut to ``limit`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
