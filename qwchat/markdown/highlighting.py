"""Syntax highlighting, line by line, with Pygments."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from qwchat.markdown.lexing import find_lexer, tokenise_line
from qwchat.markdown.styled_text import Segment

MAX_LINE = 1000  # Longer lines get no colours: some regular expressions take quadratic time.
_COMMENT = "90"
# The terminal's 16 colours follow the user's theme. The first entry that contains a token's type applies.
_COLOURS = (
    ("Comment.Preproc", "35"),
    ("Comment.PreprocFile", "32"),
    ("Comment", _COMMENT),
    ("Keyword.Constant", "36"),
    ("Keyword.Type", "36"),
    ("Keyword", "34"),
    ("Operator.Word", "34"),
    ("Literal.String", "32"),
    ("Literal.Number", "36"),
    ("Literal", "32"),
    ("Name.Builtin", "36"),
    ("Name.Function", "33"),
    ("Name.Class", "33"),
    ("Name.Decorator", "35"),
    ("Name.Tag", "34"),
    ("Name.Attribute", "36"),
    ("Name.Exception", "36"),
    ("Generic.Deleted", "31"),
    ("Generic.Inserted", "32"),
    ("Generic.Heading", "1"),
    ("Generic.Subheading", "35"),
    ("Generic.Prompt", _COMMENT),
)


class HighlightState(NamedTuple):
    """State after a line: the lexer's state stack, and whether a `/*` comment is open."""

    stack: tuple[str, ...] = ("root",)
    comment: bool = False


def highlight_line(line: str, language: str, state: HighlightState) -> tuple[list[Segment], HighlightState]:
    """Return `line` as coloured segments, and the state after it.

    The segments always add up to the line. A language that Pygments does not know gets no colours.

    Args:
        line: One line of code, without its newline.
        language: First word of the info string.
        state: State after the previous line.
    """
    lexer = find_lexer(language.lower())
    if lexer is None or len(line) > MAX_LINE:
        return [(line, "")], state
    if state.comment:
        end = line.find("*/") + 2
        if end == 1:
            return [(line, _COMMENT)], state
        rest, state = highlight_line(line[end:], language, state._replace(comment=False))
        return [(line[:end], _COMMENT), *rest], state
    tokens, stack = tokenise_line(lexer, line + "\n", state.stack)
    segments: list[Segment] = []
    position = 0
    for start, kind, text in tokens:
        if start != position:  # The lexer skipped or repeated text: show the line as it is.
            return [(line, "")], HighlightState()
        if _opens_comment(line, start, kind, len(stack) - len(state.stack)) and _has_block_comments(language.lower()):
            return [*segments, (line[start:], _COMMENT)], HighlightState(stack, comment=True)
        position += len(text)
        text = text.rstrip("\n") if position > len(line) else text
        if text:
            style = _token_style(kind)
            if segments and segments[-1][1] == style:
                segments[-1] = (segments[-1][0] + text, style)
            else:
                segments.append((text, style))
    if "".join(text for text, _ in segments) != line:
        return [(line, "")], HighlightState()
    return segments, HighlightState(stack)


def _opens_comment(line: str, start: int, kind: Any, deeper: int) -> bool:
    """Return True if the token at `start` opens a comment that continues after this line.

    This is for lexers that match a whole comment with one rule, and therefore keep no state inside it.
    """
    if deeper > 0 or not line.startswith("/*", start) or "*/" in line[start + 2 :]:
        return False
    return not str(kind).startswith("Token.Literal")


@lru_cache(maxsize=32)
def _has_block_comments(language: str) -> bool:
    lexer = find_lexer(language)
    if lexer is None:
        return False
    tokens, _ = tokenise_line(lexer, "/* x */\n", ("root",))
    return bool(tokens) and tokens[0][2] == "/* x */" and str(tokens[0][1]).startswith("Token.Comment")


@lru_cache(maxsize=512)
def _token_style(kind: Any) -> str:
    name = str(kind).removeprefix("Token.")
    return next((style for part, style in _COLOURS if name == part or name.startswith(part + ".")), "")
