"""What the blocks of a reply look like: rows of styled text, in order, each made once."""

from __future__ import annotations

import copy
import re
from typing import Literal, NamedTuple

from qwchat.markdown.block_parser import Blocks
from qwchat.markdown.code import CodeState, code_segments
from qwchat.markdown.grid import alignments, split_row, styled_cells
from qwchat.markdown.inline import inline, inline_piece, open_markers, previewed
from qwchat.markdown.styles import BOLD, CODE, DIM, ITALIC, UNDERLINED
from qwchat.markdown.table_stream import TableStream
from qwchat.markdown.width import Row, Segment, graphemes, wrapped

_LEAST_ROOM = 8  # Columns that a line has behind its containers' markers, however deep they nest.
_LEAST_HELD, _MOST_HELD = 40, 1000  # Columns of text; finding markup in it takes time that grows with its square.
_RULE_COLUMNS = 40
_MOST_GAPS = 12  # Blank lines that are held back until something follows.
_FIRST_WIDE = "\u1100"  # From here on a character is taken for two columns wide where space is only estimated.
_HEADINGS = {1: f"{BOLD};{UNDERLINED}", 2: BOLD}
_LOW_HEADING = f"{BOLD};{ITALIC}"
_LANGUAGE = re.compile(r"[\w+#.-]+")
_MARKS = "*`~_[]()\\"
_LONGEST_GRAPHEME = 64
_ENDLESS = 1 << 30
_BAR = "│ "  # Before what is quoted.
_BULLETS = str.maketrans("-*+", "•••")


class Paper(NamedTuple):
    """What rows are made for: `width` in columns (None: never wrap), `cap` in rows that the live tail may have, and
    whether there is `colour`."""

    width: int | None
    cap: int
    colour: bool


class Layout:
    """Makes rows of what `blocks` finds (it is its Sink); `take` hands them over.

    Attributes:
        paper: what rows are made for; it may change at any time.
        codes: the fenced code blocks that have ended.
        language: of the code block in hand; "" for no colours.
        unfinished: this is a preview, and its last paragraph may lack the ends of its markup.
    """

    def __init__(self, paper: Paper, blocks: Blocks) -> None:
        self.paper = paper
        self.codes: tuple[str, ...] = ()
        self.unfinished = False
        self._blocks = blocks
        self._rows: list[Row] = []
        self._gaps: tuple[Row, ...] = ()  # Blank lines, which show when something follows.
        self._begun = False
        self._open: Literal["", "paragraph", "table", "fence"] = ""
        self._first: tuple[Segment, ...] = ()  # What the next row of the block in hand begins with,
        self._rest: tuple[Segment, ...] = ()  # and the rows after that.
        self._held = ""  # The text of the paragraph in hand that is not yet in rows.
        self._columns = 0  # About how many columns that takes.
        self._carry: tuple[Segment, ...] = ()  # The row that it goes on with.
        self._cut = False  # Rows of the paragraph in hand have been printed.
        self._formula_end = ""  # What ends the formula in which it was cut.
        self._table = TableStream((), ())
        self._code: list[str] = []  # Lines of the code block in hand.
        self.language = ""
        self._code_state = CodeState()

    @property
    def in_code(self) -> bool:
        """Whether a fenced code block is open."""
        return self._open == "fence"

    def take(self) -> list[Row]:
        """The rows made since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def twin(self, blocks: Blocks) -> Layout:
        """A copy that can go on by itself; it has no rows yet, and only what is new of the code block in hand."""
        twin = copy.copy(self)
        twin._blocks, twin._rows, twin._code = blocks, [], []
        return twin

    def resume(self) -> None:
        """Take everything so far for printed."""
        self._rows, self._gaps = [], ()
        self._held, self._columns, self._carry, self._cut = "", 0, (), True
        self._first = self._rest
        if self._open == "table":
            self._table = self._table.resumed(self._width, self.paper.cap)

    @property
    def _limit(self) -> int:
        """Columns of text that a paragraph holds back at most: what fills three quarters of the tail."""
        return min(max(_LEAST_HELD, self._room * self.paper.cap * 3 // 4), _MOST_HELD)

    @property
    def _room(self) -> int:
        """Columns of a row behind the markers of the block in hand."""
        if self.paper.width is None:
            return _ENDLESS
        return max(_LEAST_ROOM, self.paper.width - sum(len(text) for text, _ in self._rest))

    # What the lines are (the methods of blocks.Sink).

    def paragraph(self, text: str) -> None:
        self._open = "paragraph"
        self._first, self._rest = self._markers()
        self._held, self._columns, self._carry, self._cut, self._formula_end = "", 0, (), False, ""
        self.add(text)

    def more(self, text: str) -> None:
        # What was resumed had its row ended.
        self.add("\n" + text if self._held or self._carry else text)

    def heading(self, level: int, text: str) -> None:
        self._first, self._rest = self._markers()
        style = _HEADINGS.get(level, _LOW_HEADING)
        long = len(text) > 2 * _MOST_HELD  # Whatever that is, it is no heading with markup in it.
        segments = [(text, style)] if long else inline(text, colour=self.paper.colour, base=style)
        self._emit_text(wrapped(segments, self._room))

    def underlined(self, level: int) -> bool:
        if self._cut:
            return False
        segments = inline(self._held, colour=self.paper.colour, base=_HEADINGS[level])
        self._emit_text(wrapped(segments, self._room))
        self._open = ""
        return True

    def table(self, head: str, delimiters: str) -> bool:
        columns = alignments(delimiters)
        if len(columns) != len(split_row(head)) or not ("\n" + self._held).endswith("\n" + head):
            return False
        self._held = self._held[: -len(head) - 1]
        if self._held or self._carry:
            self._end_paragraph()
        self._open = "table"
        self._table = TableStream((styled_cells(head, colour=self.paper.colour, head=True),), columns)
        self._print_table()
        return True

    def table_row(self, source: str) -> None:
        self._table = self._table.plus(styled_cells(source, colour=self.paper.colour))
        self._print_table()

    def open_fence(self, info: str) -> None:
        self._open = "fence"
        match = _LANGUAGE.match(info)
        self.language = match[0] if match else ""
        self._code, self._code_state = [], CodeState()
        self._first, self._rest = self._markers()
        title = f"── {len(self.codes) + 1}" + (f" · {info}" if info else "")
        self._emit_text(wrapped([(title, DIM)], self._room))

    def code(self, text: str) -> None:
        # Code begins in the first column however deep the list is that it stands in, so that it can be copied.
        self._code.append(text)
        segments = [(text, "")]
        if self.paper.colour and self.language:
            segments, self._code_state = code_segments(text, self.language, self._code_state)
        self._emit([Row(tuple(segments), soft=True)])

    def close_fence(self) -> None:
        self._keep_code()
        self._emit([Row((("──", DIM),))])

    def indented(self, text: str) -> None:
        self._first, self._rest = self._markers()
        self._emit([Row((*self._first, (text, CODE if self.paper.colour else "")), soft=True)])

    def rule(self) -> None:
        self._first, self._rest = self._markers()
        self._emit_text([Row((("─" * min(self._room, _RULE_COLUMNS), DIM),))])

    def blank(self) -> None:
        first, rest = self._markers()
        if self._blocks.fresh:  # An item with nothing in it yet.
            self._emit([Row(first)])
        else:
            self._gaps = (*self._gaps, Row(rest))
            if len(self._gaps) > _MOST_GAPS:
                oldest, *gaps = self._gaps
                self._gaps = tuple(gaps)
                self._rows += [_bare(oldest)] if self._begun else []

    def end_leaf(self) -> None:
        if self._open == "paragraph":
            self._end_paragraph()
        elif self._open == "table":
            self._emit_text(self._table.end(self._width, self.paper.cap))
        elif self._open == "fence":
            self._keep_code()
        self._open = ""

    # Paragraphs.

    def add(self, text: str) -> None:
        """Text of the paragraph in hand. Wherever so much is held, the same rows are cut off."""
        if self._cut and not self._held and not self._carry:
            text = text.lstrip(" ")  # A row of its own for what was resumed.
        while text:
            fits = self._fitting(text)
            self._held += text[:fits]
            text = text[fits:]
            if self._columns >= self._limit:
                self._cut_paragraph()

    def _fitting(self, text: str) -> int:
        """How many characters of `text` can be held until the limit is reached; counts their columns."""
        limit, room, columns = self._limit, self._room, self._columns
        fits = len(text)
        if text.isascii() and "\n" not in text:
            fits = max(1, min(fits, limit - columns))
            columns += fits
        else:
            for number, character in enumerate(text):
                if columns >= limit:
                    fits = max(1, number)
                    break
                if character == "\n":
                    columns += room - columns % room
                else:
                    columns += 2 if character >= _FIRST_WIDE else 1
        self._columns = columns
        return fits

    def _cut_paragraph(self) -> None:
        """Print what is held but for its last row, at a blank outside all markup where there is one."""
        cut = _cutting_place(self._held)
        segments, self._formula_end = inline_piece(self._held[:cut], self._formula_end, colour=self.paper.colour)
        *full, last = wrapped([*self._carry, *segments], self._room)
        self._emit_text(full)
        self._carry, self._held, self._cut = last.segments, self._held[cut:], True
        self._columns = 0
        self._fitting(self._held)

    def _end_paragraph(self) -> None:
        text = previewed(self._held) if self.unfinished and not self._formula_end else self._held
        if text or self._carry:
            segments, _ = inline_piece(text, self._formula_end, colour=self.paper.colour)
            self._emit_text(wrapped([*self._carry, *segments], self._room))

    # Tables.

    def _print_table(self) -> None:
        """Print what is certain of the table in hand."""
        self._table, rows = self._table.certain(self._width, self.paper.cap)
        self._emit_text(rows)

    @property
    def _width(self) -> int | None:
        """Columns that a table may take; None where nothing is wrapped."""
        return None if self.paper.width is None else self._room

    # Rows.

    def _keep_code(self) -> None:
        self.codes = (*self.codes, "".join(line + "\n" for line in self._code))
        self._code, self._open = [], ""

    def _markers(self) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
        """What the first row of a block begins with, and its other rows: the markers of its containers."""
        containers, first, rest = self._blocks.containers, [], []
        width = sum(container.offset or len(_BAR) for container in containers)
        excess = 0 if self.paper.width is None else max(0, width + _LEAST_ROOM - self.paper.width)
        for number, container in enumerate(containers):
            new = number >= len(containers) - self._blocks.fresh
            text, style = (container.marker.translate(_BULLETS), "") if container.offset else (_BAR, DIM)
            if container.offset and not new:
                text = " " * container.offset
            # Where it is narrow, indentation gives way, from the left; what the model wrote stays.
            cut = min(excess, len(text) - len(text.lstrip()) if container.offset and new else len(text))
            excess -= cut
            first.append((text[cut:], style))
            rest.append((" " * len(text[cut:]) if container.offset else text[cut:], style))
        return tuple(first), tuple(rest)

    def _emit_text(self, rows: list[Row]) -> None:
        """Print rows of the block in hand, behind its markers."""
        marked: list[Row] = []
        for row in rows:
            marked.append(Row((*self._first, *row.segments), row.soft))
            self._first = self._rest
        self._emit(marked)

    def _emit(self, rows: list[Row]) -> None:
        if rows:
            if self._begun:
                self._rows += [_bare(row) for row in self._gaps]
            self._rows += [_bare(row) for row in rows]
            self._gaps, self._begun = (), True


def _cutting_place(text: str) -> int:
    """Where to cut a paragraph that is held: in its second half, after a whole word and outside all markup if that can
    be; else between two characters, but in no run of markers."""
    half = len(text) // 2
    _, safe = open_markers(text)
    if safe > half:
        return safe
    blank = max(text.rfind(" "), text.rfind("\n"))
    if blank > half:
        return blank
    end = len(text) - len(list(graphemes(text[-_LONGEST_GRAPHEME:]))[-1])
    while end > half and text[end - 1] in _MARKS:
        end -= 1
    return max(1, end)


def _bare(row: Row) -> Row:
    """The row without blanks at its end, unless it is code."""
    if row.soft:
        return row
    segments = list(row.segments)
    while segments and not segments[-1][0].strip(" "):
        segments.pop()
    if segments:
        segments[-1] = (segments[-1][0].rstrip(" "), segments[-1][1])
    return Row(tuple(segments))
