"""Plain tables: columns padded with blanks, nothing drawn, the same in a pipe as on a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from qwchat.characters import harmless_name
from qwchat.markdown.width import cells


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """``rows`` under ``heads``, two blanks between columns; the columns numbered in ``right`` are right-aligned.

    What is in a cell stays in its line, whatever it is.
    """
    lines = [[harmless_name(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(cells(line[column]) for line in lines) for column in range(len(heads))]

    def line(parts: Sequence[str]) -> str:
        padded = [
            " " * (width - cells(part)) + part if column in right else part + " " * (width - cells(part))
            for column, (part, width) in enumerate(zip(parts, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join(map(line, lines))


def pairs(facts: Sequence[tuple[str, str]]) -> str:
    """Names and values, the values one below the other, each on one line whatever it holds."""
    width = max(cells(name) for name, _ in facts)
    return "\n".join(f"{name}{' ' * (width - cells(name))}  {harmless_name(value)}".rstrip() for name, value in facts)


def one_line(text: str, limit: int = 60) -> str:
    """``text`` for a cell: on one line, and cut to ``limit`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
