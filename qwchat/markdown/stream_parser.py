"""Markdown as it streams, to rows that are printed once.

`StreamParser` takes text in pieces of any size and gives the rows that are certain. These depend on the text alone,
not on how the text was cut: lines are decided about when they are complete, and a paragraph that grows too tall is cut
at places that the text determines. `preview` says what the end of the text would add, for the live tail.
"""

from __future__ import annotations

import copy
import re

from qwchat.markdown.block_parser import BlockParser
from qwchat.markdown.block_renderer import BlockRenderer, RenderOptions
from qwchat.markdown.styled_text import StyledRow, break_at_cells, expand_tabs

_MIN_PARTIAL_LINE, _MAX_PARTIAL_LINE = 40, 1000
_DEFAULT_COLUMNS = 80
_UNLIMITED = 1 << 30
_MARKER_ONLY = re.compile(r"[\s>#*+=|`~_.:)-]*(?:\d{1,9}[.)]?)?")


class StreamParser:
    """The state of a reply that is being shown."""

    def __init__(self, options: RenderOptions) -> None:
        self._block_parser = BlockParser()
        self._renderer = BlockRenderer(options, self._block_parser)
        self._partial = ""  # The line in hand, without its newline.
        self._is_checked = False  # That line is long, and no paragraph: it waits for its end.
        self._in_paragraph = False  # The line in hand has been taken for part of a paragraph; the rest just follows.

    @property
    def options(self) -> RenderOptions:
        """What rows are made for; it may change at any time."""
        return self._renderer.options

    @options.setter
    def options(self, options: RenderOptions) -> None:
        self._renderer.options = options

    @property
    def code_blocks(self) -> tuple[str, ...]:
        """The fenced code blocks that have ended."""
        return self._renderer.code_blocks

    def push(self, text: str) -> None:
        """Take the next piece of text, which holds no control characters but newlines and tabs."""
        start = 0
        while start < len(text):
            end = text.find("\n", start)
            stop = len(text) if end < 0 else end
            while start < stop:
                start = self._take_part(text, start, stop)
            if end >= 0:
                self._end_of_line()
                start = end + 1

    def end(self) -> None:
        """The text ends here."""
        if self._partial or self._in_paragraph:
            self._end_of_line()
        self._block_parser.end(self._renderer)

    def take_rows(self) -> list[StyledRow]:
        """The rows that became certain since the last call."""
        return self._renderer.take_rows()

    def resume(self) -> None:
        """Everything so far has been printed, unfinished as it was: what follows begins a row of its own."""
        if self._partial and not self._renderer.in_code:
            self._block_parser.line(self._partial, self._renderer)
            self._in_paragraph = self._block_parser.leaf == "paragraph"
        self._partial = ""
        self._renderer.resume()

    def preview(self) -> list[StyledRow]:
        """The rows that `end` would add, each at most as wide as the paper."""
        clone = self._clone()
        in_code, longest = self._renderer.in_code, self._max_partial_line
        if len(clone._partial) > longest:  # Only so much of it can be seen.
            clone._partial = clone._partial[-longest:] if in_code else clone._partial[:longest]
            clone._renderer.language = ""  # Its beginning would be needed to colour it.
        elif not in_code and _MARKER_ONLY.fullmatch(clone._partial.strip()):
            clone._partial = ""  # It is not yet clear what it will be.
        if clone._partial or clone._in_paragraph:
            clone._end_of_line()
        clone._renderer.is_preview = True
        clone._block_parser.end(clone._renderer)
        rows: list[StyledRow] = []
        for row in clone.take_rows():
            rows += (
                break_at_cells(expand_tabs(row.segments), self.options.width)
                if row.soft and self.options.width
                else [row]
            )
        return rows

    def _clone(self) -> StreamParser:
        """A copy that can go on by itself; it has no rows yet."""
        clone = copy.copy(self)
        clone._block_parser = copy.copy(self._block_parser)
        clone._renderer = self._renderer.clone(clone._block_parser)
        return clone

    def _take_part(self, text: str, start: int, stop: int) -> int:
        """Take text up to `stop` or as far as may be at once; how far that was."""
        if self._in_paragraph:
            self._renderer.add_text(text[start:stop])
            return stop
        longest = _UNLIMITED if self._is_checked else self._max_partial_line - len(self._partial)
        end_of_part = min(stop, start + max(1, longest))
        self._partial += text[start:end_of_part]
        if not self._is_checked and len(self._partial) >= self._max_partial_line:
            self._is_checked = True
            if self._starts_paragraph(self._partial):
                line, self._partial = self._partial, ""
                self._block_parser.line(line, self._renderer)
                self._in_paragraph = True
        return end_of_part

    @property
    def _max_partial_line(self) -> int:
        """Characters of a line that are waited for before it is decided whether the line is text."""
        return min(
            max(_MIN_PARTIAL_LINE, (self.options.width or _DEFAULT_COLUMNS) * self.options.tail_rows // 2),
            _MAX_PARTIAL_LINE,
        )

    def _starts_paragraph(self, line: str) -> bool:
        """Whether a line that begins so is a paragraph's."""
        clone = self._clone()
        clone._block_parser.line(line, clone._renderer)
        return clone._block_parser.leaf == "paragraph"

    def _end_of_line(self) -> None:
        if self._in_paragraph:
            self._block_parser.forget_line()
        else:
            line, self._partial = self._partial, ""
            self._block_parser.line(line, self._renderer)
        self._in_paragraph = self._is_checked = False
