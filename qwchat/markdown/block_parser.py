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
_DEEPEST = 24  # Containers within containers; what nests deeper is text.
_HEADING = re.compile(r"(#{1,6})(?:\s+|$)(.*)")
_FENCE = re.compile(r"(`{3,})([^`]*)$|(~{3,})(.*)$")
_RULE = re.compile(r"(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$")
_UNDERLINE = re.compile(r"(=+|-+)\s*$")
_ITEM = re.compile(r"([-+*]|(\d{1,9})[.)])(\s|$)")
_FORMULA = re.compile(r"\\\[|\$\$(?=\\|$)")  # Before a formula of several lines, and what is behind it.
FORMULA_ENDS = {"\\[": "\\]", "$$": "$$"}
_DELIMITERS = re.compile(r"\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$")


class Container(NamedTuple):
    """A block quote, or an item of a list.

    Attributes:
        marker: what its first line shows, such as "> ", "- " or "  1. ".
        offset: columns by which an item's other lines are indented; 0 for a quote.
        bare: the item began with nothing behind its marker, and nothing has followed yet.
    """

    marker: str
    offset: int
    bare: bool = False


class Sink(Protocol):
    """Is told what each line is. Containers that begin with the line are the last `Blocks.fresh` ones."""

    def paragraph(self, text: str) -> None:
        """The first line of a paragraph."""

    def more(self, text: str) -> None:
        """Another line of it."""

    def heading(self, level: int, text: str) -> None: ...

    def underlined(self, level: int) -> bool:
        """The line underlines the paragraph, which so becomes a heading. False: too late for that."""

    def table(self, head: str, delimiters: str) -> bool:
        """The line delimits the columns of a table whose head was the last line of the paragraph. False: it does not.

        True ends the paragraph.
        """

    def table_row(self, source: str) -> None: ...
    def open_fence(self, info: str) -> None: ...
    def code(self, text: str) -> None:
        """A line of a code block."""

    def close_fence(self) -> None: ...
    def indented(self, text: str) -> None:
        """A line of code that only its indentation marks, which `text` still has."""

    def rule(self) -> None: ...
    def blank(self) -> None: ...
    def end_leaf(self) -> None:
        """The paragraph or the table ends before this line."""


class Blocks:
    """The open containers and the open leaf after some lines; `copy.copy` makes an independent twin.

    Attributes:
        containers: the open ones, from the outside in.
        fresh: how many of them, counted from the inside, begin with the line in hand.
        leaf: the block that further lines may go to.
    """

    def __init__(self) -> None:
        self.containers: tuple[Container, ...] = ()
        self.fresh = 0
        self.leaf: Leaf = "none"
        self._fence = ""
        self._fence_indent = 0
        self._last = ""  # The last whole line of a paragraph, which a table may take for its head.
        self._formula_end = ""  # What ends the formula that the paragraph is in; its lines are no blocks.

    def line(self, text: str, sink: Sink) -> None:
        """Take the next line, without its newline."""
        self.fresh = 0
        matched, rest, column = self._match_containers(text)
        whole = matched == len(self.containers)
        if whole and self.leaf == "fence":
            self._in_fence(rest, column, sink)
            return
        rest = _expanded(rest, column)
        if whole and self.leaf == "code" and (not rest.strip() or _indent(rest) >= _CODE_INDENT):
            sink.indented(rest) if rest.strip() else sink.blank()
            return
        self._begin(matched, rest, sink)
        self._fill_bare()

    def forget_line(self) -> None:
        """The last line went on after all, so it is no head of a table."""
        self._last = ""

    def end(self, sink: Sink) -> None:
        """There are no more lines."""
        self._end_leaf(sink)
        self.containers = ()

    def _match_containers(self, text: str) -> tuple[int, str, int]:
        """How many open containers the line goes on with, what it has behind their markers, and where that begins.

        Tabs in it stay: code has them as they are.
        """
        column = 0
        for number, container in enumerate(self.containers):
            spread = _expanded(text, column)
            indent, blank = _indent(spread), not spread.strip()
            if container.offset:
                if (blank and container.bare) or (not blank and indent < container.offset):
                    return number, text, column
                taken = container.offset
                text = _without_columns(text, taken, column)
            elif indent < _CODE_INDENT and spread[indent : indent + 1] == ">":
                taken = _quote_width(spread, indent, column)
                text = _without_columns(text.lstrip(" \t")[1:], taken - indent - 1, column + indent + 1)
            else:
                return number, text, column
            column += taken
        return len(self.containers), text, column

    def _begin(self, matched: int, rest: str, sink: Sink) -> None:
        """Open the containers and the leaf that begin with this line, or go on with a paragraph or a table."""
        if self.leaf == "paragraph" and self._formula_end and not _FENCE.match(rest.lstrip(" ")):
            self._text(matched, rest, sink)
            return
        whole = matched == len(self.containers)
        if whole and self.leaf == "paragraph" and self._is_table(rest, sink):
            return
        while rest.strip():
            paragraph = self.leaf == "paragraph" and whole and not self.fresh
            indent = _indent(rest)
            if indent >= _CODE_INDENT:
                if self.leaf != "paragraph" or self.fresh:
                    self._close_to(matched, sink)
                    self.leaf = "code"
                    sink.indented(rest)
                    return
                break
            if self._is_leaf(rest.lstrip(" "), indent, matched, paragraph, sink):
                return
            opened = self._opened(rest, indent, matched, paragraph)
            if opened is None:
                break
            container, rest = opened
            self._close_to(matched, sink)
            self.containers = (*self.containers, container)
            self.fresh += 1
            matched = len(self.containers)
        self._text(matched, rest, sink)

    def _close_to(self, matched: int, sink: Sink) -> None:
        """End the open leaf, and the containers that the line did not go on with."""
        self._end_leaf(sink)
        self.containers = self.containers[:matched]

    def _end_leaf(self, sink: Sink) -> None:
        if self.leaf != "none":
            self.leaf = "none"
            sink.end_leaf()

    def _is_table(self, rest: str, sink: Sink) -> bool:
        body = rest.strip()
        if "|" not in body or body.startswith("- ") or _indent(rest) >= _CODE_INDENT or not _DELIMITERS.match(body):
            return False
        if not self._last or not sink.table(self._last, body):
            return False
        self.leaf = "table"
        return True

    def _is_leaf(self, body: str, indent: int, matched: int, paragraph: bool, sink: Sink) -> bool:
        """Whether the line is a block of its own: a heading, a fence or a rule."""
        if match := _HEADING.match(body):
            self._close_to(matched, sink)
            sink.heading(len(match[1]), _without_closing(match[2]))
        elif match := _FENCE.match(body):
            self._close_to(matched, sink)
            self.leaf, self._fence, self._fence_indent = "fence", match[1] or match[3], indent
            sink.open_fence((match[2] if match[1] else match[4]).strip())
        elif paragraph and _UNDERLINE.match(body) and sink.underlined(1 if body[0] == "=" else 2):
            self.leaf = "none"
        elif _RULE.match(body):
            self._close_to(matched, sink)
            sink.rule()
        else:
            return False
        return True

    def _opened(self, rest: str, indent: int, matched: int, paragraph: bool) -> tuple[Container, str] | None:
        """The container that begins here and what the line has behind its marker."""
        if matched >= _DEEPEST:
            return None
        column = sum(container.offset or 2 for container in self.containers[:matched])
        body = rest[indent:]
        if body[0] == ">":
            rest = _expanded_after(rest, indent + 1, column)
            return Container("> ", 0), rest[_quote_width(rest, indent, column) :]
        match = _ITEM.match(body)
        if match is None or (paragraph and (not body[match.end(1) :].strip() or match[2] not in (None, "1"))):
            return None
        start = indent + len(match[1])
        rest = _expanded_after(rest, start, column)
        blanks = _indent(rest[start:])
        bare = not rest[start:].strip()
        if bare or blanks > _CODE_INDENT:
            blanks = 1
        offset = start + blanks
        return Container(f"{rest[:start]:<{offset}}", offset, bare), rest[offset:]

    def _text(self, matched: int, rest: str, sink: Sink) -> None:
        """The line is blank, or text."""
        if not rest.strip():
            self._close_to(matched, sink)
            sink.blank()
        elif self.leaf == "paragraph" and not self.fresh:
            # A paragraph goes on even where the line leaves its containers' markers out.
            whole = matched == len(self.containers)
            self._last = rest if whole else ""
            self._formula_end = _formula_end(rest, self._formula_end)
            sink.more(rest if whole else rest.lstrip())
        elif self.leaf == "table" and matched == len(self.containers) and not self.fresh:
            sink.table_row(rest.strip())
        else:
            self._close_to(matched, sink)
            self.leaf, self._last, self._formula_end = "paragraph", rest, _formula_end(rest, "")
            sink.paragraph(rest)

    def _in_fence(self, rest: str, column: int, sink: Sink) -> None:
        body = rest.strip()
        if (
            _indent(_expanded(rest, column)) < _CODE_INDENT
            and len(body) >= len(self._fence)
            and not body.strip(self._fence[0])
        ):
            self.leaf = "none"
            sink.close_fence()
            return
        sink.code(_without_columns(rest, self._fence_indent, column))

    def _fill_bare(self) -> None:
        """Items that began empty have something in them now, but for one that has only just begun."""
        inner = len(self.containers) - (1 if self.fresh else 0)
        if any(container.bare for container in self.containers[:inner]):
            filled = [container._replace(bare=False) for container in self.containers[:inner]]
            self.containers = (*filled, *self.containers[inner:])


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip(" "))


def _formula_end(line: str, waiting: str) -> str:
    """What ends the formula that is open after `line`, before which `waiting` ended one; "" where none is open."""
    body = line.strip()
    if not waiting and (match := _FORMULA.match(body)):
        body, waiting = body[match.end() :], FORMULA_ENDS[match[0]]
    return "" if waiting and waiting in body else waiting


def _without_closing(heading: str) -> str:
    """A heading's text without the number signs that may close it."""
    heading = heading.rstrip()
    text = heading.rstrip("#")
    return text.rstrip() if not text or text[-1].isspace() else heading


def _expanded(text: str, column: int) -> str:
    """`text`, which begins in `column`, with the tabs of its indentation as blanks; tab stops are four apart."""
    if text[:1] not in ("\t", " ") or "\t" not in text:
        return text
    body = text.lstrip(" \t")
    lead = (" " * (column % _TAB) + text[: len(text) - len(body)]).expandtabs(_TAB)
    return lead[column % _TAB :] + body


def _without_columns(text: str, columns: int, column: int) -> str:
    """`text`, which begins in `column`, without the blanks in its first `columns`; what is left of a tab that
    reaches beyond them is blanks."""
    end, taken = column + columns, 0
    while column < end and text[taken : taken + 1] in (" ", "\t"):
        column += 1 if text[taken] == " " else _TAB - column % _TAB
        taken += 1
    return " " * (column - end) + text[taken:]


def _expanded_after(text: str, start: int, column: int) -> str:
    """`text` with the tabs expanded that follow its first `start` characters."""
    return text[:start] + _expanded(text[start:], column + start)


def _quote_width(text: str, indent: int, column: int) -> int:
    """Characters that the marker of a quote takes with the blank behind it; `text` has no tab there."""
    text = _expanded_after(text, indent + 1, column)
    return indent + (2 if text[indent + 1 : indent + 2] == " " else 1)
