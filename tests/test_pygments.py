"""Assumptions of `qwchat.markdown.lexing` about Pygments: private tables and states."""

from __future__ import annotations

from typing import Any

import pytest
from pygments.lexer import ExtendedRegexLexer, RegexLexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, _TokenType

from qwchat.markdown.lexing import find_lexer, tokenise_line

SAMPLES = {
    "python": 'def f(x):\n    """Two\n    lines."""\n    return f"{x!r}" + \'é\'\n',
    "c": "/* two\n   lines */\nint main(void) { return 0; }\n",
    "html": "<p class='a'>x<script>let y = 1;</script></p>\n",
    "bash": 'for x in *; do echo "$x"; done\n',
    "rust": 'fn main() { println!("{}", 1); }\n',
}


def regex_lexer(language: str) -> Any:
    lexer = get_lexer_by_name(language, startinline=True)
    assert isinstance(lexer, RegexLexer)
    return lexer


@pytest.mark.parametrize("language", SAMPLES)
def test_the_tables_of_a_lexer(language: str) -> None:
    """Find (match, action, new state) in each state, with `match` bound to a pattern."""
    tables = regex_lexer(language)._tokens
    assert "root" in tables
    for rules in tables.values():
        for match, action, new_state in rules:
            assert match("", 0) is None or match("", 0).end() == 0
            assert action is None or isinstance(action, _TokenType) or callable(action)
            assert new_state is None or isinstance(new_state, int | str | tuple)


@pytest.mark.parametrize("language", SAMPLES)
def test_tokens_agree_with_the_library(language: str) -> None:
    lexer = find_lexer(language)
    assert lexer is not None
    tokens, _ = tokenise_line(lexer, SAMPLES[language], ("root",))
    assert tokens == [token for token in regex_lexer(language).get_tokens_unprocessed(SAMPLES[language]) if token[2]]


def test_states_are_carried_from_line_to_line() -> None:
    lexer = find_lexer("python")
    assert lexer is not None
    _, stack = tokenise_line(lexer, '"""begins\n', ("root",))
    assert len(stack) > 1
    tokens, stack = tokenise_line(lexer, 'ends"""\n', stack)
    assert str(tokens[0][1]).startswith("Token.Literal.String")
    assert stack == ("root",)
    assert tokenise_line(lexer, "def\n", stack)[0][0] == (0, Keyword, "def")


def test_a_context_lexer_gives_its_states() -> None:
    lexer = find_lexer("yaml")
    assert isinstance(lexer, ExtendedRegexLexer)
    tokens, stack = tokenise_line(lexer, "# a\n", ("root",))
    assert (0, Comment.Single, "# a") in tokens
    assert stack


def test_an_unknown_language_has_no_lexer() -> None:
    assert find_lexer("no-such-language") is None
    assert find_lexer("../../etc") is None
