"""Styled text in terminal cells: its width, and how it is broken into rows.

Widths are those of wcwidth, which prompt-toolkit uses too, by grapheme: an emoji family, a flag, an emoji with VS16 and
a letter with combining marks take two, two, two and one cells.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from typing import NamedTuple

Segment = tuple[str, str]
"""Text and its SGR parameters, such as ("word", "1;36"); "" for plain text."""

_CJK = "\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff"
_MARKS = "\u0300-\u036f\u3099\u309a\ufe00-\ufe0f"
_NO_ROW_START = "、。，．：；？！）］｝】」』》〉〕・ー々〜％"  # Not allowed at the start of a row.
_NO_ROW_END = "（［｛【「『《〈〔"  # Not allowed at the end of a row.
_MAX_SOFT_WORD, _MAX_SOFT_ROWS = 400, 4  # Columns and rows of a word that the terminal may wrap.
_TAB_STOP = 8
_CACHED_CHARACTERS = 4  # Widths of texts up to this length are cached.
_TOKEN = re.compile(r"\n|[ \t]+|[^ \t\n]+")


class StyledRow(NamedTuple):
    """One line of output.

    A soft row may be wider than the terminal. The terminal then wraps it, and joins it again when the line is copied.
    """

    segments: tuple[Segment, ...]
    soft: bool = False

    @property
    def text(self) -> str:
        """The row without its styles."""
        return "".join(text for text, _ in self.segments)

    def to_ansi(self) -> str:
        """Return the row with its styles as SGR sequences, each of them reset at its end."""
        return "".join(f"\x1b[{style}m{text}\x1b[0m" if style else text for text, style in self.segments)


@cache  # Compiled late: it takes milliseconds, and most replies have no CJK text.
def _unbreakable_pieces() -> re.Pattern[str]:
    return re.compile(rf"[{_NO_ROW_END}]*(?:[{_CJK}][{_MARKS}]*[{_NO_ROW_START}]*|[^{_CJK}]+[{_NO_ROW_START}]*)")


@cache
def _wide_characters() -> re.Pattern[str]:
    return re.compile(rf"[{_CJK}]")


def is_wide(character: str) -> bool:
    """Return True if the character belongs to a script without spaces between words, or to its punctuation."""
    return not character.isascii() and _wide_characters().match(character) is not None


def cell_width(text: str) -> int:
    """Return the columns of `text`, which has no control characters; a tab counts as one."""
    if text.isascii():
        return len(text)
    return _cached_width(text) if len(text) <= _CACHED_CHARACTERS else _measure(text)


def _measure(text: str) -> int:
    from wcwidth import wcswidth

    return max(0, wcswidth(text.replace("\t", " ")))


_cached_width = lru_cache(maxsize=4096)(_measure)  # Each CJK character is a word and measured in every frame.


def widest_word(text: str) -> int:
    """Return the columns of the widest piece of `text` that wrapping would not break."""
    widest = 0
    for word in text.split():
        pieces = [word] if word.isascii() else _unbreakable_pieces().findall(word)
        widest = max(widest, *(cell_width(piece) for piece in pieces))
    return widest


def max_cell_width(text: str) -> int:
    """Return the maximum columns of `text`, however a terminal measures emoji, marks and symbols."""
    return cell_width(text) + 2 * sum(not (character.isascii() or character.isalnum()) for character in text)


def graphemes(text: str) -> Iterator[str]:
    """Yield the graphemes of `text`, which readers see as single characters."""
    if text.isascii():
        return iter(text)
    from wcwidth import iter_graphemes

    return iter_graphemes(text)


def expand_tabs(segments: Iterable[Segment]) -> list[Segment]:
    """Return `segments`, which begin a row, with tabs replaced by the spaces that a terminal shows."""
    column, shown = 0, []
    for text, style in segments:
        for part in re.split("(\t)", text):
            add_blanks = " " * (_TAB_STOP - column % _TAB_STOP) if part == "\t" else part
            shown.append((add_blanks, style))
            column += cell_width(add_blanks)
    return shown


def clip(text: str, width: int) -> str:
    """Return the beginning of `text` that fits into `width` columns."""
    return text if cell_width(text) <= width else _clip_to_width(text, width)


def break_at_cells(segments: Iterable[Segment], width: int) -> list[StyledRow]:
    """Return `segments`, without newlines, broken after every `width` columns."""
    rows: list[StyledRow] = []
    row: list[Segment] = []
    remaining = width
    for text, style in segments:
        while text:
            head = _clip_to_width(text, remaining)
            if not head and remaining < width:
                rows.append(StyledRow(tuple(row)))
                row, remaining = [], width
                continue
            head = head or next(graphemes(text))
            row.append((head, style))
            remaining -= cell_width(head)
            text = text[len(head) :]
    return [*rows, StyledRow(tuple(row))] if row or not rows else rows


def wrap_segments(segments: Iterable[Segment], width: int, *, strict: bool = False) -> list[StyledRow]:
    """Return `segments` as one or more rows, broken at spaces, between CJK characters and at newlines.

    Spaces are kept within a row and dropped at its end; tabs become spaces. A word that is too long for a row, such as
    a URL, becomes a soft row, so that it is copied as one word. An extremely long word, or any if `strict`, is broken
    instead.

    Args:
        segments: The text.
        width: Maximum columns of a row.
        strict: Whether long words are always broken.
    """
    filler = _RowFiller(max(width, 1), 0 if strict else max(_MAX_SOFT_WORD, _MAX_SOFT_ROWS * width))
    for text, style in segments:
        for piece in _TOKEN.findall(text):
            if piece == "\n":
                filler.end_line()
            elif piece[0] in " \t":
                filler.add_blanks(piece, style)
            elif piece.isascii():
                filler.add_word(piece, style)
            else:
                for atom in _unbreakable_pieces().findall(piece):
                    filler.add_word(atom, style)
    filler.end_line()
    return filler.rows


class _RowFiller:
    """Builder of rows from words. A word is kept until the next space, because its style may change within it."""

    def __init__(self, width: int, max_soft_width: int) -> None:
        self.rows: list[StyledRow] = []
        self._width = width
        self._max_soft_width = max_soft_width
        self._row: list[Segment] = []
        self._remaining = width
        self._gap: list[Segment] = []
        self._word: list[Segment] = []
        self._at_line_start = True  # Spaces at the start of a line are indentation.

    def add_blanks(self, text: str, style: str) -> None:
        """Add spaces or tabs."""
        self._end_word()
        if "\t" in text:
            column = self._width - self._remaining + sum(len(gap) for gap, _ in self._gap)
            text = (" " * column + text).expandtabs(_TAB_STOP)[column:]
        self._gap.append((text, style))

    def add_word(self, text: str, style: str) -> None:
        """Add a word or a piece of one."""
        if self._word and (is_wide(text[0]) or is_wide(self._word[-1][0][-1])):
            self._end_word()
        self._word.append((text, style))

    def end_line(self) -> None:
        """End the line at a newline."""
        self._end_word()
        if self._row or self._at_line_start:
            self._end_row()
        self._at_line_start = True
        self._gap = []

    def _end_word(self) -> None:
        if not self._word:
            return
        word, self._word = self._word, []
        gap, self._gap = self._gap, []
        size = sum(cell_width(text) for text, _ in word)
        space = sum(len(text) for text, _ in gap)
        if self._row or self._at_line_start:
            if space + size <= self._remaining:
                self._put(gap)
                self._put(word)
                return
            if self._row:
                self._end_row()
        if self._width < size <= self._max_soft_width:
            self.rows.append(StyledRow(tuple(word), soft=True))
            self._at_line_start = False
            return
        if size > self._remaining:
            *full, last = break_at_cells(word, self._width)
            self.rows += full
            word = list(last.segments)
        self._put(word)

    def _put(self, segments: list[Segment]) -> None:
        for text, style in segments:
            if self._row and self._row[-1][1] == style:
                self._row[-1] = (self._row[-1][0] + text, style)
            else:
                self._row.append((text, style))
            self._remaining -= cell_width(text)
        self._at_line_start = False

    def _end_row(self) -> None:
        self.rows.append(StyledRow(tuple(self._row)))
        self._row, self._remaining, self._at_line_start = [], self._width, False


def _clip_to_width(text: str, width: int) -> str:
    """Return the longest beginning of `text` within `width` columns."""
    if text.isascii():
        return text[:width]
    taken, end = 0, 0
    for grapheme in graphemes(text):
        taken += cell_width(grapheme)
        if taken > width:
            break
        end += len(grapheme)
    return text[:end]
