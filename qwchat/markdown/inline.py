r"""Inline Markdown as styled text: strong, emphasis, strikethrough, code, links.

markdown-it decides what is markup. Markers that a style replaces are removed; everything else stays as the model wrote
it: tags, entities, backslashes, single newlines, link addresses, and formulas (`$…$`, `\(…\)`, `$$…$$`, `\[…\]`),
which contain no markup. Markers between letters or path characters (`2*3*4`, `/usr/*/lib/*.so`) and those of
`__names__` stay too, because they are rarely meant as markup.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from qwchat.markdown.block_parser import FORMULA_ENDS
from qwchat.markdown.styled_text import Segment
from qwchat.markdown.styles import BOLD, CODE, DIM, ITALIC, STRUCK, UNDERLINED

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

_MARKUP = re.compile(r"[\\`*_~\[]")
_TIGHT_NEIGHBOURS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/\\_=@#$%^&|~+<>*")
_TAG_STYLES = {"strong": BOLD, "em": ITALIC, "s": STRUCK, "link": UNDERLINED}
# A dollar sign opens a formula if no space follows. It closes one if no space precedes it and it does not begin a price
# or a shell variable.
_FORMULA = re.compile(
    r"\\\(.*?\\\)|\\\[.*?\\\]|\$\$.+?\$\$|\$(?![\s$])(?:[^$\n`\\]|\\.)*(?<!\s)\$(?![\w({])", re.DOTALL
)
_OPEN_FORMULA = re.compile(rf"{_FORMULA.pattern}|^ *(\\\[|\$\$)", re.DOTALL | re.MULTILINE)
_MARKER = re.compile(rf"{_FORMULA.pattern}|\\.|`+|\*+|~~|\]\(|[\[\])]|\s", re.DOTALL)
_TRAILING_MARKERS = re.compile(r"(?:\*+|`+|~+)\s*$")


def inline_segments(text: str, *, colour: bool, base: str = "") -> list[Segment]:
    """Return `text`, which may contain newlines, as segments.

    Args:
        text: The source.
        colour: Whether code is coloured. If not, it keeps its backticks.
        base: SGR parameters of every segment, such as those of a heading.
    """
    if not _MARKUP.search(text):
        return [(text, base)] if text else []
    tokens = _parser().parseInline(text, {})[0].children or []
    return _Styler(tokens, colour, base).segments()


def inline_part(text: str, formula_end: str, *, colour: bool) -> tuple[list[Segment], str]:
    """Return a part of a paragraph as segments, and what ends the formula it leaves open ("" if none).

    Args:
        text: The part.
        formula_end: What ends the formula in which the part begins, or "".
        colour: As for `inline_segments`.
    """
    if formula_end:
        end = text.find(formula_end)
        if end < 0:
            return [(text, "")], formula_end
        end += len(formula_end)
        segments, formula_end = inline_part(text[end:], "", colour=colour)
        return [(text[:end], ""), *segments], formula_end
    opened = next((match for match in _OPEN_FORMULA.finditer(text) if match[1]), None)
    if opened is None:
        return inline_segments(text, colour=colour), ""
    segments = inline_segments(text[: opened.start()], colour=colour)
    return [*segments, (text[opened.start() :], "")], FORMULA_ENDS[opened[1]]


class _Styler:
    """Converter of markdown-it tokens to segments, in one pass."""

    def __init__(self, tokens: list[Token], colour: bool, base: str) -> None:
        self._tokens = tokens
        self._colour = colour
        self._styles = [base] if base else []
        self._segments: list[Segment] = []
        self._literal = self._literal_markers()

    def segments(self) -> list[Segment]:
        """Return the segments of the tokens."""
        for number, token in enumerate(self._tokens):
            kind, _, part = token.type.rpartition("_")
            if token.type == "code_inline" and self._colour:
                self._add(token.content, CODE)
            elif part == "open":
                if number in self._literal:
                    self._add(token.markup)
                self._styles.append(_TAG_STYLES[kind])
            elif part == "close":
                self._styles.remove(_TAG_STYLES[kind])
                if number in self._literal:
                    self._add(token.markup)
                if kind == "link":
                    self._add_address(token)
            else:
                self._add(_source(token))
        return self._segments

    def _add(self, text: str, style: str = "") -> None:
        if text:
            self._segments.append((text, ";".join([*self._styles, style] if style else self._styles)))

    def _add_address(self, token: Token) -> None:
        """Add the address after the text of a link, unless the text is the address."""
        address = token.meta["address"]
        text = self._segments[-1][0] if self._segments else ""
        if address != f"({text})":
            self._add((" " if text else "") + address, DIM)

    def _literal_markers(self) -> set[int]:
        """Return the numbers of the tokens whose markers are shown."""
        kept: set[int] = set()
        opened: list[int] = []
        for number, token in enumerate(self._tokens):
            if token.type.endswith("_open"):
                opened.append(number)
            elif token.type.endswith("_close"):
                start = opened.pop()
                if token.type != "link_close" and self._is_literal(start, number):
                    kept |= {start, number}
        return kept

    def _is_literal(self, start: int, end: int) -> bool:
        before, after = self._neighbour(start, -1), self._neighbour(end, 1)
        if before in _TIGHT_NEIGHBOURS or after in _TIGHT_NEIGHBOURS:
            return True
        inside = "".join(_source(token) for token in self._tokens[start + 1 : end])
        return self._tokens[start].markup == "__" and inside.isidentifier()

    def _neighbour(self, number: int, step: int) -> str:
        """Return the character next to a marker, skipping other markers; "" at the ends."""
        number += step
        while 0 <= number < len(self._tokens):
            source = _source(self._tokens[number])
            if source:
                return source[0 if step > 0 else -1]
            number += step
        return ""


def _source(token: Token) -> str:
    """Return the source of a token that is not a pair of markers."""
    if token.type == "code_inline":
        return f"{token.markup}{token.content}{token.markup}"
    if token.type == "text_special":  # Escape or entity.
        return token.markup
    return token.content


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt
    from markdown_it.rules_inline import escape, link

    from qwchat.markdown.cjk_emphasis import CJKInlineParser

    def link_with_address(state: StateInline, silent: bool) -> bool:
        """Parse a link and store its address and title as they are written."""
        start, known = state.pos, len(state.tokens)
        if state.src[start] != "[":
            return False
        label_end = state.md.helpers.parseLinkLabel(state, start, True)
        if not link(state, silent):
            return False
        if not silent:
            for token in state.tokens[known:]:
                if token.type == "link_close" and "address" not in token.meta:
                    token.meta["address"] = state.src[label_end + 1 : state.pos]
        return True

    def escape_within_line(state: StateInline, silent: bool) -> bool:
        """Parse an escape. A backslash at the end of a line is text."""
        return state.src[state.pos : state.pos + 2] != "\\\n" and escape(state, silent)

    def formula(state: StateInline, silent: bool) -> bool:
        """Parse a formula as plain text."""
        match = _FORMULA.match(state.src, state.pos)
        if match is None:
            return False
        if not silent:
            state.pending += match[0]
        state.pos = match.end()
        return True

    parser = MarkdownIt("zero")
    parser.inline = CJKInlineParser()
    parser.configure("commonmark", options_update={"html": False}).enable("strikethrough")
    # Newlines and bare addresses stay text. Without text_join, escapes and entities keep their source.
    parser.disable(["newline", "image", "autolink", "text_join"])
    parser.inline.ruler.at("link", link_with_address)
    parser.inline.ruler.at("escape", escape_within_line)
    parser.inline.ruler.before("escape", "formula", formula)
    parser.normalizeLink = lambda url: url  # type: ignore[method-assign]
    parser.validateLink = lambda url: True  # type: ignore[method-assign]
    return parser


def open_markers(text: str) -> tuple[list[str], int]:
    """Return the unclosed markers at the end of `text`, and the last space outside all markup (0 if none).

    This is an estimate in one pass. It decides where a long paragraph is cut and how an unfinished one is previewed.
    """
    open_marks: list[str] = []
    safe_cut = 0
    for match in _MARKER.finditer(text):
        mark = match[0]
        in_code = bool(open_marks) and open_marks[-1][0] == "`"
        if mark.isspace():
            safe_cut = safe_cut if open_marks else match.start()
        elif mark[0] == "`":
            if not in_code:
                open_marks.append(mark)
            elif open_marks[-1] == mark:
                open_marks.pop()
        elif in_code or mark[0] in "\\$":
            continue
        elif mark == "[":
            open_marks.append(mark)
        elif mark in ("]", "]("):
            if "[" in open_marks:
                del open_marks[_last_index(open_marks, "[") :]
                open_marks += ["("] if mark == "](" else []
        elif mark == ")":
            if open_marks and open_marks[-1] == "(":
                open_marks.pop()
        elif mark in open_marks and not text[match.start() - 1].isspace():
            del open_marks[_last_index(open_marks, mark) :]
        elif not text[match.end() : match.end() + 1].isspace():
            open_marks.append(mark)
    return open_marks, safe_cut


def _last_index(marks: list[str], mark: str) -> int:
    return len(marks) - 1 - marks[::-1].index(mark)


def close_open_markup(text: str) -> str:
    """Return unfinished `text` with its open emphasis and code closed, so that markers do not flicker."""
    if not _MARKUP.search(text) or any(match[1] for match in _OPEN_FORMULA.finditer(text)):
        return text
    open_marks, _ = open_markers(text)
    if open_marks and open_marks[-1] not in "[(" and (match := _TRAILING_MARKERS.search(text)):
        text = text[: match.start()]
        open_marks.pop()
    body = text.rstrip()
    return body + "".join(mark for mark in reversed(open_marks) if mark not in "[(") + text[len(body) :]
