"""Pieces of Markdown pages."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*_<>|\[\]#])")


def escaped(text: str) -> str:
    """Return plain text as Markdown that shows exactly that text, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Return text as a code span. A bar would end a cell of a table, so such a span is HTML."""
    if "|" not in text:
        return f"`{text}`"
    return f"<code>{html.escape(text, quote=False).replace('|', '&#124;<wbr>')}</code>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def sentence(text: str) -> str:
    """Return a phrase of the program as a Markdown sentence."""
    return f"{escaped(text[:1].upper() + text[1:]).rstrip('.')}."


def page(title: str, *parts: str) -> str:
    """Return a page: a comment for editors, the title, and the parts with blank lines between them."""
    note = "<!-- Written by `python -m docs.generator` from the program's tables. Do not edit. -->"
    return "\n\n".join([note, f"# {title}", *parts]) + "\n"
