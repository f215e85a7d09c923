"""Line-by-line use of Pygments: the lexer's states are carried from one line to the next.

Pygments lexes whole texts and does not expose its states, so this module reads the private tables of `RegexLexer`.
tests/test_pygments.py checks that they are as assumed here; no other module uses them.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pygments.lexer import Lexer, RegexLexer

_MAX_STEPS_PER_CHARACTER = 50  # Lexing of a line stops after this many steps.
_MAX_STATES = 64  # Depth of the state stack; broken code could grow it without limit.


def tokenise_line(
    lexer: Lexer, text: str, stack: tuple[str, ...]
) -> tuple[list[tuple[int, Any, str]], tuple[str, ...]]:
    """Return the tokens of the line `text`, each (start, type, text), and the state stack after it."""
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
    """Do what `RegexLexer.get_tokens_unprocessed` does, and also return the states, which it does not expose."""
    from pygments.token import Error, Whitespace, _TokenType

    rules: dict[str, Any] = lexer._tokens
    tokens: list[tuple[int, Any, str]] = []
    position = 0
    for _ in range(_MAX_STEPS_PER_CHARACTER * len(text)):
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
                _apply_transition(stack, new_state)
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


def _apply_transition(stack: list[str], new_state: Any) -> None:
    for step in new_state if isinstance(new_state, tuple) else (new_state,):
        if isinstance(step, int):
            del stack[max(1, len(stack) + step) :]
        elif step == "#pop":
            del stack[max(1, len(stack) - 1) :]
        else:
            stack.append(stack[-1] if step == "#push" else step)


@lru_cache(maxsize=32)
def find_lexer(language: str) -> Lexer | None:
    """Return the lexer of `language`, or None if Pygments does not know it."""
    if not re.fullmatch(r"[\w+#.-]{1,30}", language) or language in ("text", "txt", "plain", "plaintext"):
        return None
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language, startinline=True)
    except ClassNotFound:
        return None
