"""Extraction of a code block from a reply (`-x`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qwchat.errors import ConstraintError
from qwchat.events import Done

BlockPosition = Literal["first", "last"]


@dataclass(frozen=True)
class CodeBlock:
    """The content of a fenced code block, and whether its closing fence is present."""

    content: str
    closed: bool


def code_blocks(text: str) -> list[CodeBlock]:
    """Return the fenced code blocks of a Markdown text, in order, by CommonMark. HTML is text, as in the chat."""
    from markdown_it import MarkdownIt

    lines = text.split("\n")
    found = []
    for token in MarkdownIt("commonmark", {"html": False}).parse(text):
        if token.type == "fence" and token.map is not None:
            start, stop = token.map
            last = lines[stop - 1].strip().lstrip("> \t") if stop - 1 > start else ""
            closed = len(last) >= len(token.markup) and set(last) == set(token.markup[0])
            found.append(CodeBlock(token.content, closed))
    return found


def extract(done: Done, position: BlockPosition) -> tuple[str | None, ConstraintError | None]:
    """Return the content of a code block without its last newline, and an error if it is missing or truncated.

    A block without a closing fence is complete if the model ended the reply by itself.
    """
    blocks = code_blocks(done.text)
    if not blocks:
        return None, ConstraintError("the reply has no code block: ask for one, or omit -x to see the reply")
    block = blocks[0 if position == "first" else -1]
    error = None
    if not block.closed and done.finish_reason != "stop":
        error = ConstraintError("the code block is incomplete: allow more tokens")
    return block.content.removesuffix("\n"), error
