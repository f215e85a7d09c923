"""Colours of code, line by line, with Pygments."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from qwchat.markdown.width import Segment

if TYPE_CHECKING:
    from pygments.lexer import Lexer, RegexLexer

LONGEST_LINE = 1000  # A longer line is not coloured: regular expressions can take time that grows with its square.
_COMMENT = "90"
# The sixteen colours of the terminal, so that a person's theme holds. The first that a token's type lies in counts.
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
_MOST_STEPS_PER_CHARACTER = 50  # Of a lexer; the line stays as it is where that is not enough.
_MAX_STATES = 64  # Of nested states of a lexer; more comes from broken code, and would be carried along for ever.


class CodeState(NamedTuple):
    """What the lines so far leave open: the lexer's states, and whether ``/*`` waits for ``*/``."""

    stack: tuple[str, ...] = ("root",)
    comment: bool = False


def code_segments(line: str, language: str, state: CodeState) -> tuple[list[Segment], CodeState]:
    """``line`` with the colours of ``language`` (the first word behind a fence), and the state after it.

    The text of the segments is the line, whatever it holds. A language that Pygments does not know has no colours.
    """
    lexer = _lexer(language.lower())
    if lexer is None or len(line) > LONGEST_LINE:
        return [(line, "")], state
    if state.comment:
        end = line.find("*/") + 2
        if end == 1:
            return [(line, _COMMENT)], state
        rest, state = code_segments(line[end:], language, state._replace(comment=False))
        return [(line[:end], _COMMENT), *rest], state
    tokens, stack = _tokens(lexer, line + "\n", state.stack)
    segments: list[Segment] = []
    position = 0
    for start, kind, text in tokens:
        if start != position:  # A lexer that skips or repeats something: better no colours than another text.
            return [(line, "")], CodeState()
        if _opens_comment(line, start, kind, len(stack) - len(state.stack)) and _has_block_comments(language.lower()):
            return [*segments, (line[start:], _COMMENT)], CodeState(stack, comment=True)
        position += len(text)
        text = text.rstrip("\n") if position > len(line) else text
        if text:
            style = _style(kind)
            if segments and segments[-1][1] == style:
                segments[-1] = (segments[-1][0] + text, style)
            else:
                segments.append((text, style))
    if "".join(text for text, _ in segments) != line:
        return [(line, "")], CodeState()
    return segments, CodeState(stack)


def _opens_comment(line: str, start: int, kind: Any, deeper: int) -> bool:
    """Whether the token at ``start`` begins a comment that the line does not end, in a lexer that looks at whole files
    for its end."""
    if deeper > 0 or not line.startswith("/*", start) or "*/" in line[start + 2 :]:
        return False
    return not str(kind).startswith("Token.Literal")


def _tokens(lexer: Lexer, text: str, stack: tuple[str, ...]) -> tuple[list[tuple[int, Any, str]], tuple[str, ...]]:
    """The tokens of a line and the lexer's states after it."""
    from pygments.lexer import ExtendedRegexLexer, LexerContext, RegexLexer

    if isinstance(lexer, ExtendedRegexLexer):
        if type(lexer).get_tokens_unprocessed is not ExtendedRegexLexer.get_tokens_unprocessed:
            return list(lexer.get_tokens_unprocessed(text)), ("root",)
        context = LexerContext(text, 0, list(stack))
        return list(lexer.get_tokens_unprocessed(context=context)), tuple(context.stack)
    if isinstance(lexer, RegexLexer):
        return _regex_tokens(lexer, text, list(stack))
    return list(lexer.get_tokens_unprocessed(text)), ("root",)


def _regex_tokens(lexer: RegexLexer, text: str, stack: list[str]) -> tuple[list[tuple[int, Any, str]], tuple[str, ...]]:
    """RegexLexer.get_tokens_unprocessed, but for the states, which the library's does not tell."""
    from pygments.token import Error, Whitespace, _TokenType

    rules: dict[str, Any] = lexer._tokens
    tokens: list[tuple[int, Any, str]] = []
    position = 0
    for _ in range(_MOST_STEPS_PER_CHARACTER * len(text)):
        if position >= len(text):
            break
        for matches, action, new_state in rules[stack[-1]]:
            match = matches(text, position)
            if not match:
                continue
            if isinstance(action, _TokenType):
                tokens.append((position, action, match.group()))
            elif action is not None:
                tokens.extend(action(lexer, match))
            moved = match.end() > position
            position = match.end()
            if new_state is not None:
                _change(stack, new_state)
            if moved or new_state is not None:
                break
        else:
            end_of_line = text[position] == "\n"
            if end_of_line:
                stack[:] = ["root"]
            tokens.append((position, Whitespace if end_of_line else Error, text[position]))
            position += 1
        if len(stack) > _MAX_STATES:
            stack[:] = ["root"]
    return [token for token in tokens if token[2]], tuple(stack)


def _change(stack: list[str], new_state: Any) -> None:
    for step in new_state if isinstance(new_state, tuple) else (new_state,):
        if isinstance(step, int):
            del stack[max(1, len(stack) + step) :]
        elif step == "#pop":
            del stack[max(1, len(stack) - 1) :]
        else:
            stack.append(stack[-1] if step == "#push" else step)


@lru_cache(maxsize=32)
def _lexer(language: str) -> Lexer | None:
    if not re.fullmatch(r"[\w+#.-]{1,30}", language) or language in ("text", "txt", "plain", "plaintext"):
        return None
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language, startinline=True)
    except ClassNotFound:
        return None


@lru_cache(maxsize=32)
def _has_block_comments(language: str) -> bool:
    lexer = _lexer(language)
    if lexer is None:
        return False
    tokens, _ = _tokens(lexer, "/* x */\n", ("root",))
    return bool(tokens) and tokens[0][2] == "/* x */" and str(tokens[0][1]).startswith("Token.Comment")


@lru_cache(maxsize=512)
def _style(kind: Any) -> str:
    name = str(kind).removeprefix("Token.")
    return next((style for part, style in _COLOURS if name == part or name.startswith(part + ".")), "")
