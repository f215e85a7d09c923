"""Rendering of blocks to rows of styled text, in order, each row once."""

from __future__ import annotations

import copy
import re
from typing import Literal, NamedTuple

from qwchat.markdown.block_parser import BlockParser
from qwchat.markdown.highlighting import HighlightState, highlight_line
from qwchat.markdown.inline import close_open_markup, inline_part, inline_segments, open_markers
from qwchat.markdown.styled_text import Segment, StyledRow, graphemes, wrap_segments
from qwchat.markdown.styles import BOLD, CODE, DIM, ITALIC, UNDERLINED
from qwchat.markdown.table_grid import parse_alignments, split_row, styled_cells
from qwchat.markdown.table_stream import TableStream

_MIN_TEXT_COLUMNS = 8  # Minimum columns of text after the markers of nested containers.
_MIN_PENDING, _MAX_PENDING = 40, 1000  # Columns of text; finding markup takes quadratic time.
_RULE_COLUMNS = 40
_MAX_PENDING_BLANKS = 12  # Blank lines held back until something follows.
_FIRST_WIDE = "\u1100"  # Estimates count characters from here on as two columns.
_HEADINGS = {1: f"{BOLD};{UNDERLINED}", 2: BOLD}
_MINOR_HEADING = f"{BOLD};{ITALIC}"
_LANGUAGE = re.compile(r"[\w+#.-]+")
_MARKER_CHARACTERS = "*`~_[]()\\"
_MAX_GRAPHEME = 64
_UNLIMITED = 1 << 30
_QUOTE_BAR = "│ "  # Begins the rows of a quote.
_BULLETS = str.maketrans("-*+", "•••")


class RenderOptions(NamedTuple):
    """Options of rendering.

    Attributes:
        width: Columns of the terminal; None never wraps.
        tail_rows: Maximum number of rows of the live tail.
        colour: Whether colours are used.
    """

    width: int | None
    tail_rows: int
    colour: bool


class BlockRenderer:
    """Renderer of the blocks that `block_parser` finds; it is the parser's `BlockHandler`.

    Attributes:
        options: Options of rendering; they may change at any time.
        code_blocks: Contents of the fenced code blocks that have ended.
        language: Language of the open code block; "" for no colours.
        is_preview: Whether this renders a preview, whose last paragraph may lack closing markers.
    """

    def __init__(self, options: RenderOptions, block_parser: BlockParser) -> None:
        self.options = options
        self.code_blocks: tuple[str, ...] = ()
        self.is_preview = False
        self._block_parser = block_parser
        self._rows: list[StyledRow] = []
        self._pending_blanks: tuple[StyledRow, ...] = ()  # Blank lines, printed once something follows.
        self._has_output = False
        self._open_block: Literal["", "paragraph", "table", "fence"] = ""
        self._first_prefix: tuple[Segment, ...] = ()  # Prefix of the next row of the open block,
        self._rest_prefix: tuple[Segment, ...] = ()  # and of the rows after it.
        self._pending_text = ""  # Text of the open paragraph that is not in rows yet.
        self._pending_columns = 0  # Estimated columns of that text.
        self._unfinished_row: tuple[Segment, ...] = ()  # The row that this text continues.
        self._partly_printed = False  # Some rows of the open paragraph are printed.
        self._formula_end = ""  # What ends the formula in which the paragraph was cut.
        self._table = TableStream((), ())
        self._code_lines: list[str] = []  # Lines of the open code block.
        self.language = ""
        self._highlight_state = HighlightState()

    @property
    def in_code(self) -> bool:
        """Whether a fenced code block is open."""
        return self._open_block == "fence"

    def take_rows(self) -> list[StyledRow]:
        """Return the rows made since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def clone(self, block_parser: BlockParser) -> BlockRenderer:
        """Return an independent copy, without rows and without the lines of the open code block."""
        clone = copy.copy(self)
        clone._block_parser, clone._rows, clone._code_lines = block_parser, [], []
        return clone

    def resume(self) -> None:
        """Treat everything so far as printed."""
        self._rows, self._pending_blanks = [], ()
        self._pending_text, self._pending_columns, self._unfinished_row, self._partly_printed = "", 0, (), True
        self._first_prefix = self._rest_prefix
        if self._open_block == "table":
            self._table = self._table.resumed(self._table_columns, self.options.tail_rows)

    @property
    def _pending_limit(self) -> int:
        """Maximum columns of text that a paragraph holds back: three quarters of the tail."""
        return min(max(_MIN_PENDING, self._text_columns * self.options.tail_rows * 3 // 4), _MAX_PENDING)

    @property
    def _text_columns(self) -> int:
        """Columns of a row after the markers of the open block."""
        if self.options.width is None:
            return _UNLIMITED
        return max(_MIN_TEXT_COLUMNS, self.options.width - sum(len(text) for text, _ in self._rest_prefix))

    # Methods of `BlockHandler`.

    def start_paragraph(self, text: str) -> None:
        """Begin a paragraph."""
        self._open_block = "paragraph"
        self._first_prefix, self._rest_prefix = self._prefixes()
        self._pending_text, self._pending_columns, self._unfinished_row = "", 0, ()
        self._partly_printed, self._formula_end = False, ""
        self.add_text(text)

    def continue_paragraph(self, text: str) -> None:
        """Add a line to the paragraph."""
        # Text from before `resume` ended its row, so nothing separates the two.
        self.add_text("\n" + text if self._pending_text or self._unfinished_row else text)

    def heading(self, level: int, text: str) -> None:
        """Print a heading."""
        self._first_prefix, self._rest_prefix = self._prefixes()
        style = _HEADINGS.get(level, _MINOR_HEADING)
        long = len(text) > 2 * _MAX_PENDING  # Such a long heading gets no markup.
        segments = [(text, style)] if long else inline_segments(text, colour=self.options.colour, base=style)
        self._emit_text(wrap_segments(segments, self._text_columns))

    def setext_heading(self, level: int) -> bool:
        """Print the paragraph as a heading. Return False if part of it is printed already."""
        if self._partly_printed:
            return False
        segments = inline_segments(self._pending_text, colour=self.options.colour, base=_HEADINGS[level])
        self._emit_text(wrap_segments(segments, self._text_columns))
        self._open_block = ""
        return True

    def start_table(self, head: str, delimiters: str) -> bool:
        """Begin a table if `delimiters` fits the head, and return True if it does."""
        columns = parse_alignments(delimiters)
        if len(columns) != len(split_row(head)) or not ("\n" + self._pending_text).endswith("\n" + head):
            return False
        self._pending_text = self._pending_text[: -len(head) - 1]
        if self._pending_text or self._unfinished_row:
            self._end_paragraph()
        self._open_block = "table"
        self._table = TableStream((styled_cells(head, colour=self.options.colour, head=True),), columns)
        self._print_table()
        return True

    def table_row(self, source: str) -> None:
        """Add a row to the table."""
        self._table = self._table.with_row(styled_cells(source, colour=self.options.colour))
        self._print_table()

    def open_fence(self, info: str) -> None:
        """Begin a code block and print its number and info string."""
        self._open_block = "fence"
        match = _LANGUAGE.match(info)
        self.language = match[0] if match else ""
        self._code_lines, self._highlight_state = [], HighlightState()
        self._first_prefix, self._rest_prefix = self._prefixes()
        title = f"── {len(self.code_blocks) + 1}" + (f" · {info}" if info else "")
        self._emit_text(wrap_segments([(title, DIM)], self._text_columns))

    def code_line(self, text: str) -> None:
        """Print a line of code."""
        # Code always begins in the first column, even in a list, so that it can be copied.
        self._code_lines.append(text)
        segments = [(text, "")]
        if self.options.colour and self.language:
            segments, self._highlight_state = highlight_line(text, self.language, self._highlight_state)
        self._emit([StyledRow(tuple(segments), soft=True)])

    def close_fence(self) -> None:
        """End the code block."""
        self._finish_code_block()
        self._emit([StyledRow((("──", DIM),))])

    def indented_code(self, text: str) -> None:
        """Print a line of an indented code block."""
        self._first_prefix, self._rest_prefix = self._prefixes()
        self._emit([StyledRow((*self._first_prefix, (text, CODE if self.options.colour else "")), soft=True)])

    def thematic_break(self) -> None:
        """Print a rule."""
        self._first_prefix, self._rest_prefix = self._prefixes()
        self._emit_text([StyledRow((("─" * min(self._text_columns, _RULE_COLUMNS), DIM),))])

    def blank_line(self) -> None:
        """Hold a blank line back until something follows."""
        first, rest = self._prefixes()
        if self._block_parser.opened_count:  # An empty item.
            self._emit([StyledRow(first)])
        else:
            self._pending_blanks = (*self._pending_blanks, StyledRow(rest))
            if len(self._pending_blanks) > _MAX_PENDING_BLANKS:
                oldest, *blanks = self._pending_blanks
                self._pending_blanks = tuple(blanks)
                self._rows += [_strip_trailing_blanks(oldest)] if self._has_output else []

    def end_leaf(self) -> None:
        """Print the rest of the open block and end it."""
        if self._open_block == "paragraph":
            self._end_paragraph()
        elif self._open_block == "table":
            self._emit_text(self._table.end(self._table_columns, self.options.tail_rows))
        elif self._open_block == "fence":
            self._finish_code_block()
        self._open_block = ""

    # Paragraphs.

    def add_text(self, text: str) -> None:
        """Add text to the paragraph. Long text is cut into rows at places that depend on the text alone."""
        if self._partly_printed and not self._pending_text and not self._unfinished_row:
            text = text.lstrip(" ")  # After `resume`, text begins a new row.
        while text:
            fits = self._count_fitting(text)
            self._pending_text += text[:fits]
            text = text[fits:]
            if self._pending_columns >= self._pending_limit:
                self._cut_paragraph()

    def _count_fitting(self, text: str) -> int:
        """Return how many characters of `text` fit within the limit, and count their columns."""
        limit, row_columns, columns = self._pending_limit, self._text_columns, self._pending_columns
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
                    columns += row_columns - columns % row_columns
                else:
                    columns += 2 if character >= _FIRST_WIDE else 1
        self._pending_columns = columns
        return fits

    def _cut_paragraph(self) -> None:
        """Print the pending text except for its last row, cut at a space outside all markup if possible."""
        cut = _cut_position(self._pending_text)
        segments, self._formula_end = inline_part(
            self._pending_text[:cut], self._formula_end, colour=self.options.colour
        )
        *full, last = wrap_segments([*self._unfinished_row, *segments], self._text_columns)
        self._emit_text(full)
        self._unfinished_row, self._pending_text, self._partly_printed = last.segments, self._pending_text[cut:], True
        self._pending_columns = 0
        self._count_fitting(self._pending_text)

    def _end_paragraph(self) -> None:
        text = (
            close_open_markup(self._pending_text) if self.is_preview and not self._formula_end else self._pending_text
        )
        if text or self._unfinished_row:
            segments, _ = inline_part(text, self._formula_end, colour=self.options.colour)
            self._emit_text(wrap_segments([*self._unfinished_row, *segments], self._text_columns))

    # Tables.

    def _print_table(self) -> None:
        """Print the rows of the table that are final."""
        self._table, rows = self._table.flush_rows(self._table_columns, self.options.tail_rows)
        self._emit_text(rows)

    @property
    def _table_columns(self) -> int | None:
        """Columns available to a table; None if nothing is wrapped."""
        return None if self.options.width is None else self._text_columns

    # Rows.

    def _finish_code_block(self) -> None:
        self.code_blocks = (*self.code_blocks, "".join(line + "\n" for line in self._code_lines))
        self._code_lines, self._open_block = [], ""

    def _prefixes(self) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
        """Return what the first row and the other rows of a block begin with: the markers of its containers."""
        containers, first, rest = self._block_parser.containers, [], []
        width = sum(container.offset or len(_QUOTE_BAR) for container in containers)
        excess = 0 if self.options.width is None else max(0, width + _MIN_TEXT_COLUMNS - self.options.width)
        for number, container in enumerate(containers):
            new = number >= len(containers) - self._block_parser.opened_count
            text, style = (container.marker.translate(_BULLETS), "") if container.offset else (_QUOTE_BAR, DIM)
            if container.offset and not new:
                text = " " * container.offset
            # In a narrow window, indentation is cut from the left, but markers stay.
            cut = min(excess, len(text) - len(text.lstrip()) if container.offset and new else len(text))
            excess -= cut
            first.append((text[cut:], style))
            rest.append((" " * len(text[cut:]) if container.offset else text[cut:], style))
        return tuple(first), tuple(rest)

    def _emit_text(self, rows: list[StyledRow]) -> None:
        """Print rows of the open block after its markers."""
        marked: list[StyledRow] = []
        for row in rows:
            marked.append(StyledRow((*self._first_prefix, *row.segments), row.soft))
            self._first_prefix = self._rest_prefix
        self._emit(marked)

    def _emit(self, rows: list[StyledRow]) -> None:
        if rows:
            if self._has_output:
                self._rows += [_strip_trailing_blanks(row) for row in self._pending_blanks]
            self._rows += [_strip_trailing_blanks(row) for row in rows]
            self._pending_blanks, self._has_output = (), True


def _cut_position(text: str) -> int:
    """Return where to cut pending text: in its second half, and at a space outside all markup if possible.

    Otherwise it is cut at any space, or else between two characters that are not markers.
    """
    half = len(text) // 2
    _, safe = open_markers(text)
    if safe > half:
        return safe
    blank = max(text.rfind(" "), text.rfind("\n"))
    if blank > half:
        return blank
    end = len(text) - len(list(graphemes(text[-_MAX_GRAPHEME:]))[-1])
    while end > half and text[end - 1] in _MARKER_CHARACTERS:
        end -= 1
    return max(1, end)


def _strip_trailing_blanks(row: StyledRow) -> StyledRow:
    """Return the row without trailing spaces, unless it is code."""
    if row.soft:
        return row
    segments = list(row.segments)
    while segments and not segments[-1][0].strip(" "):
        segments.pop()
    if segments:
        segments[-1] = (segments[-1][0].rstrip(" "), segments[-1][1])
    return StyledRow(tuple(segments))
