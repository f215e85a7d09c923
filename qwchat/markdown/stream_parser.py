"""Markdown as it streams, to rows that are printed once.

`Flow` takes text in pieces of any size and gives the rows that are certain. What it gives depends on the text alone,
not on how the text was cut: lines are decided about when they are complete, and a paragraph that grows too tall is cut
at places that the text determines. `preview` says what the end of the text would add, for the live tail.
"""

from __future__ import annotations

import copy
import re

from qwchat.markdown.block_parser import Blocks
from qwchat.markdown.layout import Layout, Paper
from qwchat.markdown.width import Row, cut_to_cells, untabbed

_LEAST_LINE, _MOST_LINE = 40, 1000
_USUAL_COLUMNS = 80
_NO_LIMIT = 1 << 30
_MARKER_ONLY = re.compile(r"[\s>#*+=|`~_.:)-]*(?:\d{1,9}[.)]?)?")


class Flow:
    """The state of a reply that is being shown."""

    def __init__(self, paper: Paper) -> None:
        self._blocks = Blocks()
        self._layout = Layout(paper, self._blocks)
        self._partial = ""  # The line in hand, without its newline.
        self._checked = False  # That line is long, and no paragraph: it waits for its end.
        self._inside = False  # The line in hand has been taken for part of a paragraph; the rest just follows.

    @property
    def paper(self) -> Paper:
        """What rows are made for; it may change at any time."""
        return self._layout.paper

    @paper.setter
    def paper(self, paper: Paper) -> None:
        self._layout.paper = paper

    @property
    def codes(self) -> tuple[str, ...]:
        """The fenced code blocks that have ended."""
        return self._layout.codes

    def push(self, text: str) -> None:
        """Take the next piece of text, which holds no control characters but newlines and tabs."""
        start = 0
        while start < len(text):
            end = text.find("\n", start)
            stop = len(text) if end < 0 else end
            while start < stop:
                start = self._within_line(text, start, stop)
            if end >= 0:
                self._end_of_line()
                start = end + 1

    def end(self) -> None:
        """The text ends here."""
        if self._partial or self._inside:
            self._end_of_line()
        self._blocks.end(self._layout)

    def take(self) -> list[Row]:
        """The rows that became certain since the last call."""
        return self._layout.take()

    def resume(self) -> None:
        """Everything so far has been printed, unfinished as it was: what follows begins a row of its own."""
        if self._partial and not self._layout.in_code:
            self._blocks.line(self._partial, self._layout)
            self._inside = self._blocks.leaf == "paragraph"
        self._partial = ""
        self._layout.resume()

    def preview(self) -> list[Row]:
        """The rows that `end` would add, each at most as wide as the paper."""
        twin = self._twin()
        in_code, longest = self._layout.in_code, self._longest_partial
        if len(twin._partial) > longest:  # Only so much of it can be seen.
            twin._partial = twin._partial[-longest:] if in_code else twin._partial[:longest]
            twin._layout.language = ""  # Its beginning would be needed to colour it.
        elif not in_code and _MARKER_ONLY.fullmatch(twin._partial.strip()):
            twin._partial = ""  # It is not yet clear what it will be.
        if twin._partial or twin._inside:
            twin._end_of_line()
        twin._layout.unfinished = True
        twin._blocks.end(twin._layout)
        rows: list[Row] = []
        for row in twin.take():
            rows += cut_to_cells(untabbed(row.segments), self.paper.width) if row.soft and self.paper.width else [row]
        return rows

    def _twin(self) -> Flow:
        """A copy that can go on by itself; it has no rows yet."""
        twin = copy.copy(self)
        twin._blocks = copy.copy(self._blocks)
        twin._layout = self._layout.twin(twin._blocks)
        return twin

    def _within_line(self, text: str, start: int, stop: int) -> int:
        """Take text up to `stop` or as far as may be at once; how far that was."""
        if self._inside:
            self._layout.add(text[start:stop])
            return stop
        longest = _NO_LIMIT if self._checked else self._longest_partial - len(self._partial)
        taken = min(stop, start + max(1, longest))
        self._partial += text[start:taken]
        if not self._checked and len(self._partial) >= self._longest_partial:
            self._checked = True
            if self._is_text(self._partial):
                line, self._partial = self._partial, ""
                self._blocks.line(line, self._layout)
                self._inside = True
        return taken

    @property
    def _longest_partial(self) -> int:
        """Characters of a line that are waited for before it is decided whether the line is text."""
        return min(max(_LEAST_LINE, (self.paper.width or _USUAL_COLUMNS) * self.paper.cap // 2), _MOST_LINE)

    def _is_text(self, line: str) -> bool:
        """Whether a line that begins so is a paragraph's."""
        twin = self._twin()
        twin._blocks.line(line, twin._layout)
        return twin._blocks.leaf == "paragraph"

    def _end_of_line(self) -> None:
        if self._inside:
            self._blocks.forget_line()
        else:
            line, self._partial = self._partial, ""
            self._blocks.line(line, self._layout)
        self._inside = self._checked = False
