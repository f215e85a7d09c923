"""Incremental rendering of streamed Markdown to rows that are printed once.

`StreamParser` takes text in pieces of any size and returns rows once they are final. The rows depend on the text alone,
not on how it was split: a line is parsed once it is complete, and a paragraph that grows too tall is cut at positions
determined by the text. `preview` returns the rows that the end of the text would add, for the live tail.
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
    """Parser and renderer of one reply."""

    def __init__(self, options: RenderOptions) -> None:
        self._block_parser = BlockParser()
        self._renderer = BlockRenderer(options, self._block_parser)
        self._partial = ""  # The current line, without its newline.
        self._is_checked = False  # The current line is long but not paragraph text: wait for its end.
        self._in_paragraph = False  # The current line is paragraph text: its rest is added as it arrives.

    @property
    def options(self) -> RenderOptions:
        """Options of rendering; they may change at any time."""
        return self._renderer.options

    @options.setter
    def options(self, options: RenderOptions) -> None:
        self._renderer.options = options

    @property
    def code_blocks(self) -> tuple[str, ...]:
        """Contents of the fenced code blocks that have ended."""
        return self._renderer.code_blocks

    def push(self, text: str) -> None:
        """Add a piece of text, whose only control characters are newlines and tabs."""
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
        """End the text."""
        if self._partial or self._in_paragraph:
            self._end_of_line()
        self._block_parser.end(self._renderer)

    def take_rows(self) -> list[StyledRow]:
        """Return the rows that became final since the last call."""
        return self._renderer.take_rows()

    def resume(self) -> None:
        """Treat everything so far as printed, including an unfinished line. The next text begins a new row."""
        if self._partial and not self._renderer.in_code:
            self._block_parser.line(self._partial, self._renderer)
            self._in_paragraph = self._block_parser.leaf == "paragraph"
        self._partial = ""
        self._renderer.resume()

    def preview(self) -> list[StyledRow]:
        """Return the rows that `end` would add, none wider than the terminal."""
        clone = self._clone()
        in_code, longest = self._renderer.in_code, self._max_partial_line
        if len(clone._partial) > longest:  # No more than this is visible.
            clone._partial = clone._partial[-longest:] if in_code else clone._partial[:longest]
            clone._renderer.language = ""  # Highlighting would need the beginning of the line.
        elif not in_code and _MARKER_ONLY.fullmatch(clone._partial.strip()):
            clone._partial = ""  # It is not clear yet which block this becomes.
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
        """Return an independent copy without rows."""
        clone = copy.copy(self)
        clone._block_parser = copy.copy(self._block_parser)
        clone._renderer = self._renderer.clone(clone._block_parser)
        return clone

    def _take_part(self, text: str, start: int, stop: int) -> int:
        """Take text from `start` towards `stop`, as much as possible at once, and return its end."""
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
        """Characters of a line after which it is decided whether the line is paragraph text."""
        return min(
            max(_MIN_PARTIAL_LINE, (self.options.width or _DEFAULT_COLUMNS) * self.options.tail_rows // 2),
            _MAX_PARTIAL_LINE,
        )

    def _starts_paragraph(self, line: str) -> bool:
        """Return True if a line that begins with `line` belongs to a paragraph."""
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
