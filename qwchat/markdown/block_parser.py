"""The block structure of Markdown, line by line: containers, paragraphs, headings, code, tables, rules.

This is the algorithm of the CommonMark specification (appendix "A parsing strategy"), which decides about each line
from the lines before it, with tables as GitHub has them. markdown-it parses whole documents only, so that a reply would
have to be parsed again and again; the tests compare the two. Left out on purpose: HTML blocks and link reference
definitions, which would swallow text. Lines of a formula (`\\[`, `$$`) belong to its paragraph, whatever they begin
with: a minus sign there is no bullet.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, Protocol

Leaf = Literal["none", "paragraph", "heading", "fence", "code", "table"]

_TAB = 4
_CODE_INDENT = 4
_MAX_CONTAINERS = 24  # Containers within containers; what nests deeper is text.
_HEADING = re.compile(r"(#{1,6})(?:\s+|$)(.*)")
_FENCE = re.compile(r"(`{3,})([^`]*)$|(~{3,})(.*)$")
_THEMATIC_BREAK = re.compile(r"(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$")
_SETEXT_UNDERLINE = re.compile(r"(=+|-+)\s*$")
_ITEM = re.compile(r"([-+*]|(\d{1,9})[.)])(\s|$)")
_FORMULA = re.compile(r"\\\[|\$\$(?=\\|$)")  # Before a formula of several lines, and what is behind it.
FORMULA_ENDS = {"\\[": "\\]", "$$": "$$"}
_DELIMITER_ROW = re.compile(r"\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$")


class Container(NamedTuple):
    """A block quote, or an item of a list.

    Attributes:
        marker: what its first line shows, such as "> ", "- " or "  1. ".
        offset: columns by which an item's other lines are indented; 0 for a quote.
        bare: the item began with nothing behind its marker, and nothing has followed yet.
    """

    marker: str
    offset: int
    empty: bool = False


class BlockHandler(Protocol):
    """Is told what each line is. Containers that begin with the line are the last `BlockParser.opened_count` ones."""

    def start_paragraph(self, text: str) -> None:
        """The first line of a paragraph."""

    def continue_paragraph(self, text: str) -> None:
        """Another line of it."""

    def heading(self, level: int, text: str) -> None: ...

    def setext_heading(self, level: int) -> bool:
        """The line underlines the paragraph, which so becomes a heading. False: too late for that."""

    def start_table(self, head: str, delimiters: str) -> bool:
        """The line delimits the columns of a table whose head was the last line of the paragraph. False: it does not.

        True ends the paragraph.
        """

    def table_row(self, source: str) -> None: ...
    def open_fence(self, info: str) -> None: ...
    def code_line(self, text: str) -> None:
        """A line of a code block."""

    def close_fence(self) -> None: ...
    def indented_code(self, text: str) -> None:
        """A line of code that only its indentation marks, which `text` still has."""

    def thematic_break(self) -> None: ...
    def blank_line(self) -> None: ...
    def end_leaf(self) -> None:
        """The paragraph or the table ends before this line."""


class BlockParser:
    """The open containers and the open leaf after some lines; `copy.copy` makes an independent twin.

    Attributes:
        containers: the open ones, from the outside in.
        fresh: how many of them, counted from the inside, begin with the line in hand.
        leaf: the block that further lines may go to.
    """

    def __init__(self) -> None:
        self.containers: tuple[Container, ...] = ()
        self.opened_count = 0
        self.leaf: Leaf = "none"
        self._fence = ""
        self._fence_indent = 0
        self._last_line = ""  # The last whole line of a paragraph, which a table may take for its head.
        self._formula_end = ""  # What ends the formula that the paragraph is in; its lines are no blocks.

    def line(self, text: str, handler: BlockHandler) -> None:
        """Take the next line, without its newline."""
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
        """The last line went on after all, so it is no head of a table."""
        self._last_line = ""

    def end(self, handler: BlockHandler) -> None:
        """There are no more lines."""
        self._end_leaf(handler)
        self.containers = ()

    def _match_open_containers(self, text: str) -> tuple[int, str, int]:
        """How many open containers the line goes on with, what it has behind their markers, and where that begins.

        Tabs in it stay: code has them as they are.
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
        """Open the containers and the leaf that begin with this line, or go on with a paragraph or a table."""
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
        """End the open leaf, and the containers that the line did not go on with."""
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
        """Whether the line is a block of its own: a heading, a fence or a rule."""
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
        """The container that begins here and what the line has behind its marker."""
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
        """The line is blank, or text."""
        if not rest.strip():
            self._close_unmatched(matched, handler)
            handler.blank_line()
        elif self.leaf == "paragraph" and not self.opened_count:
            # A paragraph goes on even where the line leaves its containers' markers out.
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
        """Items that began empty have something in them now, but for one that has only just begun."""
        inner = len(self.containers) - (1 if self.opened_count else 0)
        if any(container.empty for container in self.containers[:inner]):
            filled = [container._replace(empty=False) for container in self.containers[:inner]]
            self.containers = (*filled, *self.containers[inner:])


def _indentation(text: str) -> int:
    return len(text) - len(text.lstrip(" "))


def _open_formula_end(line: str, pending_end: str) -> str:
    """What ends the formula that is open after `line`, before which `pending_end` ended one; "" where none is open."""
    body = line.strip()
    if not pending_end and (match := _FORMULA.match(body)):
        body, pending_end = body[match.end() :], FORMULA_ENDS[match[0]]
    return "" if pending_end and pending_end in body else pending_end


def _strip_closing_hashes(heading: str) -> str:
    """A heading's text without the number signs that may close it."""
    heading = heading.rstrip()
    text = heading.rstrip("#")
    return text.rstrip() if not text or text[-1].isspace() else heading


def _expand_indent_tabs(text: str, column: int) -> str:
    """`text`, which begins in `column`, with the tabs of its indentation as blanks; tab stops are four apart."""
    if text[:1] not in ("\t", " ") or "\t" not in text:
        return text
    body = text.lstrip(" \t")
    lead = (" " * (column % _TAB) + text[: len(text) - len(body)]).expandtabs(_TAB)
    return lead[column % _TAB :] + body


def _remove_columns(text: str, columns: int, column: int) -> str:
    """`text`, which begins in `column`, without the blanks in its first `columns`; what is left of a tab that
    reaches beyond them is blanks."""
    end, taken = column + columns, 0
    while column < end and text[taken : taken + 1] in (" ", "\t"):
        column += 1 if text[taken] == " " else _TAB - column % _TAB
        taken += 1
    return " " * (column - end) + text[taken:]


def _expand_tabs_after(text: str, start: int, column: int) -> str:
    """`text` with the tabs expanded that follow its first `start` characters."""
    return text[:start] + _expand_indent_tabs(text[start:], column + start)


def _quote_marker_width(text: str, indent: int, column: int) -> int:
    """Characters that the marker of a quote takes with the blank behind it; `text` has no tab there."""
    text = _expand_tabs_after(text, indent + 1, column)
    return indent + (2 if text[indent + 1 : indent + 2] == " " else 1)
