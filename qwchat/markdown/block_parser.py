r"""Block structure of Markdown, line by line: containers, paragraphs, headings, code, tables, thematic breaks.

This is the algorithm of the CommonMark specification (appendix "A parsing strategy"), which decides about each line
from the lines before it, plus GitHub's tables. markdown-it only parses whole documents, so a growing reply would be
parsed again and again; the tests compare the two. HTML blocks and link reference definitions are left out on purpose,
because they would swallow text. The lines of a formula (`\[`, `$$`) belong to its paragraph even if they look like
blocks: a minus sign there is not a bullet.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, Protocol

Leaf = Literal["none", "paragraph", "heading", "fence", "code", "table"]

_TAB = 4
_CODE_INDENT = 4
_MAX_CONTAINERS = 24  # Nested containers; deeper markers are text.
_HEADING = re.compile(r"(#{1,6})(?:\s+|$)(.*)")
_FENCE = re.compile(r"(`{3,})([^`]*)$|(~{3,})(.*)$")
_THEMATIC_BREAK = re.compile(r"(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$")
_SETEXT_UNDERLINE = re.compile(r"(=+|-+)\s*$")
_ITEM = re.compile(r"([-+*]|(\d{1,9})[.)])(\s|$)")
_FORMULA = re.compile(r"\\\[|\$\$(?=\\|$)")  # Begins a formula of several lines.
FORMULA_ENDS = {"\\[": "\\]", "$$": "$$"}
_DELIMITER_ROW = re.compile(r"\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$")


class Container(NamedTuple):
    """Block quote or list item.

    Attributes:
        marker: What the first line shows, such as "> ", "- " or "  1. ".
        offset: Columns by which the other lines of an item are indented; 0 for a quote.
        empty: Whether nothing has followed the marker of the item yet.
    """

    marker: str
    offset: int
    empty: bool = False


class BlockHandler(Protocol):
    """Receiver of the blocks that `BlockParser` finds.

    The last `BlockParser.opened_count` containers begin with the current line.
    """

    def start_paragraph(self, text: str) -> None:
        """Handle the first line of a paragraph."""

    def continue_paragraph(self, text: str) -> None:
        """Handle another line of the paragraph."""

    def heading(self, level: int, text: str) -> None:
        """Handle a heading of a level from 1 to 6."""

    def setext_heading(self, level: int) -> bool:
        """Turn the paragraph into a heading. Return False if it is too late for that."""

    def start_table(self, head: str, delimiters: str) -> bool:
        """Begin a table whose head is the last line of the paragraph.

        Returns:
            True if the paragraph ends and the table begins; False if `delimiters` does not fit the head.
        """

    def table_row(self, source: str) -> None:
        """Handle a row of the table."""

    def open_fence(self, info: str) -> None:
        """Begin a fenced code block with the info string `info`."""

    def code_line(self, text: str) -> None:
        """Handle a line of a fenced code block."""

    def close_fence(self) -> None:
        """End the fenced code block."""

    def indented_code(self, text: str) -> None:
        """Handle a line of an indented code block, with its indentation."""

    def thematic_break(self) -> None:
        """Handle a thematic break."""

    def blank_line(self) -> None:
        """Handle a blank line."""

    def end_leaf(self) -> None:
        """End the paragraph, the table or the code block before the current line."""


class BlockParser:
    """Parser of one line after another. `copy.copy` makes an independent copy.

    Attributes:
        containers: The open containers, outermost first.
        opened_count: Number of innermost containers that begin with the current line.
        leaf: The block that the next line may continue.
    """

    def __init__(self) -> None:
        self.containers: tuple[Container, ...] = ()
        self.opened_count = 0
        self.leaf: Leaf = "none"
        self._fence = ""
        self._fence_indent = 0
        self._last_line = ""  # Last complete line of a paragraph, the possible head of a table.
        self._formula_end = ""  # What ends the open formula, whose lines are text.

    def line(self, text: str, handler: BlockHandler) -> None:
        """Parse the next line, without its newline."""
        self.opened_count = 0
        matched, rest, column = self._match_open_containers(text)
        all_matched = matched == len(self.containers)
        if all_matched and self.leaf == "fence":
            self._fence_line(rest, column, handler)
            return
        rest = _expand_indent_tabs(rest, column)
        if all_matched and self.leaf == "code" and (not rest.strip() or _indentation(rest) >= _CODE_INDENT):
            handler.indented_code(rest) if rest.strip() else handler.blank_line()
            return
        self._start_blocks(matched, rest, handler)
        self._mark_items_filled()

    def forget_line(self) -> None:
        """Prevent the last line from becoming the head of a table, because it turned out to be longer."""
        self._last_line = ""

    def end(self, handler: BlockHandler) -> None:
        """End the document."""
        self._end_leaf(handler)
        self.containers = ()

    def _match_open_containers(self, text: str) -> tuple[int, str, int]:
        """Match the line against the open containers.

        Returns:
            How many containers the line continues, the text after their markers, and the column of that text. Tabs in
            it are kept, since code shows them.
        """
        column = 0
        for number, container in enumerate(self.containers):
            spread = _expand_indent_tabs(text, column)
            indent, blank = _indentation(spread), not spread.strip()
            if container.offset:
                if (blank and container.empty) or (not blank and indent < container.offset):
                    return number, text, column
                taken = container.offset
                text = _remove_columns(text, taken, column)
            elif indent < _CODE_INDENT and spread[indent : indent + 1] == ">":
                taken = _quote_marker_width(spread, indent, column)
                text = _remove_columns(text.lstrip(" \t")[1:], taken - indent - 1, column + indent + 1)
            else:
                return number, text, column
            column += taken
        return len(self.containers), text, column

    def _start_blocks(self, matched: int, rest: str, handler: BlockHandler) -> None:
        """Open the containers and the leaf that begin with this line, or continue a paragraph or a table."""
        if self.leaf == "paragraph" and self._formula_end and not _FENCE.match(rest.lstrip(" ")):
            self._text_line(matched, rest, handler)
            return
        all_matched = matched == len(self.containers)
        if all_matched and self.leaf == "paragraph" and self._start_table(rest, handler):
            return
        while rest.strip():
            in_paragraph = self.leaf == "paragraph" and all_matched and not self.opened_count
            indent = _indentation(rest)
            if indent >= _CODE_INDENT:
                if self.leaf != "paragraph" or self.opened_count:
                    self._close_unmatched(matched, handler)
                    self.leaf = "code"
                    handler.indented_code(rest)
                    return
                break
            if self._parse_leaf(rest.lstrip(" "), indent, matched, in_paragraph, handler):
                return
            opened = self._open_container(rest, indent, matched, in_paragraph)
            if opened is None:
                break
            container, rest = opened
            self._close_unmatched(matched, handler)
            self.containers = (*self.containers, container)
            self.opened_count += 1
            matched = len(self.containers)
        self._text_line(matched, rest, handler)

    def _close_unmatched(self, matched: int, handler: BlockHandler) -> None:
        """End the open leaf and the containers that the line does not continue."""
        self._end_leaf(handler)
        self.containers = self.containers[:matched]

    def _end_leaf(self, handler: BlockHandler) -> None:
        if self.leaf != "none":
            self.leaf = "none"
            handler.end_leaf()

    def _start_table(self, rest: str, handler: BlockHandler) -> bool:
        body = rest.strip()
        if (
            "|" not in body
            or body.startswith("- ")
            or _indentation(rest) >= _CODE_INDENT
            or not _DELIMITER_ROW.match(body)
        ):
            return False
        if not self._last_line or not handler.start_table(self._last_line, body):
            return False
        self.leaf = "table"
        return True

    def _parse_leaf(self, body: str, indent: int, matched: int, in_paragraph: bool, handler: BlockHandler) -> bool:
        """Handle a heading, fence or thematic break, and return True if the line is one."""
        if match := _HEADING.match(body):
            self._close_unmatched(matched, handler)
            handler.heading(len(match[1]), _strip_closing_hashes(match[2]))
        elif match := _FENCE.match(body):
            self._close_unmatched(matched, handler)
            self.leaf, self._fence, self._fence_indent = "fence", match[1] or match[3], indent
            handler.open_fence((match[2] if match[1] else match[4]).strip())
        elif in_paragraph and _SETEXT_UNDERLINE.match(body) and handler.setext_heading(1 if body[0] == "=" else 2):
            self.leaf = "none"
        elif _THEMATIC_BREAK.match(body):
            self._close_unmatched(matched, handler)
            handler.thematic_break()
        else:
            return False
        return True

    def _open_container(self, rest: str, indent: int, matched: int, in_paragraph: bool) -> tuple[Container, str] | None:
        """Return the container that begins here and the text after its marker, or None."""
        if matched >= _MAX_CONTAINERS:
            return None
        column = sum(container.offset or 2 for container in self.containers[:matched])
        body = rest[indent:]
        if body[0] == ">":
            rest = _expand_tabs_after(rest, indent + 1, column)
            return Container("> ", 0), rest[_quote_marker_width(rest, indent, column) :]
        match = _ITEM.match(body)
        if match is None or (in_paragraph and (not body[match.end(1) :].strip() or match[2] not in (None, "1"))):
            return None
        start = indent + len(match[1])
        rest = _expand_tabs_after(rest, start, column)
        blanks = _indentation(rest[start:])
        empty = not rest[start:].strip()
        if empty or blanks > _CODE_INDENT:
            blanks = 1
        offset = start + blanks
        return Container(f"{rest[:start]:<{offset}}", offset, empty), rest[offset:]

    def _text_line(self, matched: int, rest: str, handler: BlockHandler) -> None:
        """Handle a blank line or a line of text."""
        if not rest.strip():
            self._close_unmatched(matched, handler)
            handler.blank_line()
        elif self.leaf == "paragraph" and not self.opened_count:
            # Lazy continuation: the line may lack the markers of its containers.
            all_matched = matched == len(self.containers)
            self._last_line = rest if all_matched else ""
            self._formula_end = _open_formula_end(rest, self._formula_end)
            handler.continue_paragraph(rest if all_matched else rest.lstrip())
        elif self.leaf == "table" and matched == len(self.containers) and not self.opened_count:
            handler.table_row(rest.strip())
        else:
            self._close_unmatched(matched, handler)
            self.leaf, self._last_line, self._formula_end = "paragraph", rest, _open_formula_end(rest, "")
            handler.start_paragraph(rest)

    def _fence_line(self, rest: str, column: int, handler: BlockHandler) -> None:
        body = rest.strip()
        if (
            _indentation(_expand_indent_tabs(rest, column)) < _CODE_INDENT
            and len(body) >= len(self._fence)
            and not body.strip(self._fence[0])
        ):
            self.leaf = "none"
            handler.close_fence()
            return
        handler.code_line(_remove_columns(rest, self._fence_indent, column))

    def _mark_items_filled(self) -> None:
        """Mark items as filled, except for one that begins with this line."""
        inner = len(self.containers) - (1 if self.opened_count else 0)
        if any(container.empty for container in self.containers[:inner]):
            filled = [container._replace(empty=False) for container in self.containers[:inner]]
            self.containers = (*filled, *self.containers[inner:])


def _indentation(text: str) -> int:
    return len(text) - len(text.lstrip(" "))


def _open_formula_end(line: str, pending_end: str) -> str:
    """Return what ends the formula that is open after `line`, or "" if none is; `pending_end` ends one open before."""
    body = line.strip()
    if not pending_end and (match := _FORMULA.match(body)):
        body, pending_end = body[match.end() :], FORMULA_ENDS[match[0]]
    return "" if pending_end and pending_end in body else pending_end


def _strip_closing_hashes(heading: str) -> str:
    """Return the text of a heading without the number signs that may close it."""
    heading = heading.rstrip()
    text = heading.rstrip("#")
    return text.rstrip() if not text or text[-1].isspace() else heading


def _expand_indent_tabs(text: str, column: int) -> str:
    """Return `text`, which begins at `column`, with the tabs of its indentation expanded to stops of four columns."""
    if text[:1] not in ("\t", " ") or "\t" not in text:
        return text
    body = text.lstrip(" \t")
    lead = (" " * (column % _TAB) + text[: len(text) - len(body)]).expandtabs(_TAB)
    return lead[column % _TAB :] + body


def _remove_columns(text: str, columns: int, column: int) -> str:
    """Return `text`, which begins at `column`, without the spaces in its first `columns`.

    A tab that reaches beyond them leaves spaces.
    """
    end, taken = column + columns, 0
    while column < end and text[taken : taken + 1] in (" ", "\t"):
        column += 1 if text[taken] == " " else _TAB - column % _TAB
        taken += 1
    return " " * (column - end) + text[taken:]


def _expand_tabs_after(text: str, start: int, column: int) -> str:
    """Return `text` with the indentation tabs after its first `start` characters expanded."""
    return text[:start] + _expand_indent_tabs(text[start:], column + start)


def _quote_marker_width(text: str, indent: int, column: int) -> int:
    """Return the number of characters of a quote marker and the space after it; `text` has no tab there."""
    text = _expand_tabs_after(text, indent + 1, column)
    return indent + (2 if text[indent + 1 : indent + 2] == " " else 1)
