"""Constraints as the user states them: what they allow and what they refuse."""

from __future__ import annotations

import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwchat.constraints import Constraint, llguidance_adapter
from qwchat.errors import UsageError

WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)


@given(st.lists(WORDS, min_size=1, max_size=5), WORDS)
def test_choices_allow_their_texts_and_nothing_else(texts: list[str], other: str) -> None:
    constraint = Constraint.choices(texts)
    assert all(constraint.fits(text) for text in texts)
    assert constraint.fits(other) == (other in texts)
    assert not constraint.fits("")


def test_choices_are_separated_by_commas() -> None:
    constraint = Constraint.parse_choices(["yes, no", r"Hello\, world", "yes"])
    assert constraint.source == r"yes,no,Hello\, world"
    assert [constraint.fits(text) for text in ("yes", "no", "Hello, world", " no", "Hello")] == [True] * 3 + [False] * 2
    assert Constraint.parse_choices([constraint.source]) == constraint


@pytest.mark.parametrize("given", [[], [""], ["yes,,no"], ["yes,"]])
def test_empty_choices_are_refused(given: list[str]) -> None:
    with pytest.raises(UsageError, match=r"^choices must not be empty: give some texts, as in choices='yes,no'$"):
        Constraint.parse_choices(given)


def test_a_regular_expression_matches_as_a_whole() -> None:
    constraint = Constraint.regex(r"\d{3}-[a-z]+")
    assert constraint.fits("123-abc")
    assert not any(constraint.fits(text) for text in ("123-", "x123-a", "123-a!", "", "123-a\n"))
    assert Constraint.regex("^(yes|no)$").fits("no")
    assert Constraint.regex("").fits("")
    assert Constraint.regex(r"漢+/\.").fits("漢漢/.")


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("x(", "unclosed group (character 2)"),
        ("[a-z", "unclosed character class (character 1)"),
        ("a{3,2}", "invalid repetition count range, the start must be <= the end (character 2)"),
        (r"(a)\1", "backreferences are not supported (character 4)"),
        ("ab(?=c)", "look-around, including look-ahead and look-behind, is not supported (character 3)"),
        (r"\bfoo", r"look-around is not supported: WordUnicode in regex /\bfoo/"),
        ("(" * 1000 + ")" * 1000, "exceed the maximum number of nested parentheses/brackets (250) (character 251)"),
    ],
)
def test_a_bad_regular_expression_is_refused_with_its_position(pattern: str, reason: str) -> None:
    with pytest.raises(UsageError) as refusal:
        Constraint.regex(pattern)
    assert str(refusal.value) == f"the regular expression cannot be used: {reason}"


def test_constraints_that_nothing_matches_are_refused() -> None:
    with pytest.raises(UsageError, match="the JSON schema cannot be used, at #: nothing can match it"):
        Constraint.json_schema('{"$ref": "#"}')


def test_too_large_and_invalid_texts_are_refused() -> None:
    with pytest.raises(UsageError, match="the regular expression is larger than the limit of 1 MiB"):
        Constraint.regex("a" * (1 << 20) + "b")
    with pytest.raises(UsageError, match="the JSON schema contains a lone surrogate"):
        Constraint.json_schema('"\ud800"')


def test_a_grammar_that_takes_too_long_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llguidance_adapter, "SECONDS", 0.05)
    patterns = [{"pattern": f"a.{{{length}}}b"} for length in range(22)]
    before = set(threading.enumerate())
    with pytest.raises(
        UsageError, match=r"^the JSON schema cannot be used: it is too complex to be checked within 5 s$"
    ):
        Constraint.json_schema(json.dumps({"type": "string", "allOf": patterns}))
    assert set(threading.enumerate()) - before, "the work still goes on, in a thread of its own"
