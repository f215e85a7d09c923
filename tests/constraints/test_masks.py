"""Masks over a vocabulary of bytes: random replies are completed to valid text, however few tokens remain."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qwchat.constraints import Constraint, llguidance_adapter
from qwchat.constraints.masks import GrammarMask, JsonCloser
from qwchat.errors import ConstraintError
from tests.tiers import some

TOKENS = [*(bytes([byte]) for byte in range(256)), b'"}', b'": "', b"<end>"]
STOP = 258
VOCABULARY = llguidance_adapter.TokenizerVocabulary(TOKENS, [STOP], [STOP], list)
TOKENIZER = llguidance_adapter.make_tokenizer(VOCABULARY, slices=False)
CLOSER = JsonCloser(TOKENS, {bytes([byte]): byte for byte in range(256)})
TREE = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 2}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["name", "children"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    {},
    TREE,
    {"type": "string"},
    {"type": "string", "format": "email"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "format": "uri"},
    {"type": "string", "pattern": "^[a-z]{3,}-[0-9]{4,}$"},
    {"type": "string", "pattern": "^[A-Z]+#$"},
    {"type": "number", "minimum": 10.5},
    {"type": "integer", "multipleOf": 7, "minimum": 1000},
    {"type": "array", "items": {"enum": ["red", 5, None]}, "minItems": 3},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1},
    {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "object", "patternProperties": {"^x": {}}}]},
]


def mask(constraint: Constraint, closer: JsonCloser | None = CLOSER) -> GrammarMask:
    return GrammarMask(llguidance_adapter.make_matcher(TOKENIZER, constraint.grammar), closer)


def sample_reply(found: GrammarMask, remaining: int, chance: random.Random) -> list[int]:
    """Return tokens drawn evenly from the allowed ones, until the reply ends or no token remains."""
    reply: list[int] = []
    while len(reply) < remaining and not found.finished:
        allowed = np.flatnonzero(np.unpackbits(found.allowed(), count=len(TOKENS), bitorder="little")).tolist()
        token = chance.choice(allowed)
        if token == STOP:
            break
        taken = found.accept(token, remaining - len(reply))
        if taken is None:
            break
        reply.append(taken)
    return reply


@pytest.mark.parametrize("schema", some(SCHEMAS, 4), ids=json.dumps)
@pytest.mark.parametrize("remaining", [45, 100, 300])
def test_json_is_completed_within_the_limit(schema: dict[str, Any], remaining: int) -> None:
    constraint = Constraint.json_schema(json.dumps(schema))
    for seed in range(8):
        found = mask(constraint)
        text = b"".join(TOKENS[token] for token in sample_reply(found, remaining, random.Random(seed))).decode()
        assert constraint.fits(text), text


def test_completion_is_forced_when_few_tokens_remain() -> None:
    found = mask(Constraint.json_schema('{"type": "string"}'))
    reply = sample_reply(found, 40, random.Random(3))
    assert reply[-1] == ord('"')
    assert len(reply) in (39, 40)
    assert found.completing


def test_without_space_for_a_completion_nothing_changes() -> None:
    constraint = Constraint.json_schema(json.dumps(TREE))
    found = mask(constraint)
    reply = sample_reply(found, 12, random.Random(1))
    assert (len(reply), found.completing) == (12, False)
    assert not constraint.fits(b"".join(TOKENS[token] for token in reply).decode())


def test_many_remaining_tokens_need_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GrammarMask, "_find_completion", lambda *unused: pytest.fail("searched"))
    found = mask(Constraint.json_schema("{}"))
    assert [found.accept(token, 500) for token in b"[1"] == list(b"[1")


def test_quotation_marks_and_backslashes_tell_strings() -> None:
    place = ""
    steps = ((b'{"', "string"), (b"a\\", "escape"), (b'"', "string"), (b"\\\\", "string"), (b'": "x', "string"))
    for text, expected in steps:
        for byte in text:
            place = CLOSER.state_after(place, byte)
        assert place == expected
    assert CLOSER.state_after("string", 256) == ""
    assert CLOSER.state_after("string", 257) == "string"
    assert CLOSER.state_after("escape", ord("n")) == "string"


def test_drafts_and_forced_tokens() -> None:
    found = mask(Constraint.choices(["yes, sir", "yes, madam"]))
    assert found.forced_tokens() == list(b"yes, ")
    assert found.count_allowed(list(b"yes, no")) == 5
    for token in b"yes, s":
        assert found.accept(token, 3) == token
    assert found.forced_tokens() == list(b"ir")
    assert not found.finished
    for token in b"ir":
        found.accept(token)
    assert found.finished


def test_a_token_that_is_not_allowed_is_an_error() -> None:
    found = mask(Constraint.choices(["a"]))
    with pytest.raises(ConstraintError, match="the constraint cannot be enforced any further"):
        found.accept(ord("b"))


def test_library_messages_are_passed_on_without_markers() -> None:
    failed: Any = SimpleNamespace(is_error=lambda: True, get_error=lambda: "lexer error: too many <non-verbose/>\n")
    with pytest.raises(ConstraintError, match=r"\(lexer error: too many\): simplify it$"):
        GrammarMask(failed)
