"""200 schemas of a public suite: replies are valid JSON at temperature 1, whatever the weights."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
from jsonschema import validators

import qwchat
from qwchat.constraints import Constraint
from qwchat.events import Done
from qwchat.messages import Message
from qwchat.request import SamplingParams
from tests.conftest import REPOSITORY

SCHEMAS = [
    json.loads(line) for line in (REPOSITORY / "tests/data/json_schemas/schemas.jsonl").read_text("utf-8").splitlines()
]
DIALECTS = {
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft7": "http://json-schema.org/draft-07/schema#",
}
WARM = SamplingParams(temperature=1.0)


def validator(entry: dict[str, Any]) -> Any:
    kind = validators.validator_for({"$schema": DIALECTS[entry["draft"]]})
    return kind(entry["schema"], format_checker=kind.FORMAT_CHECKER)


def test_the_suite_has_200_different_schemas() -> None:
    assert len({json.dumps(entry["schema"]) for entry in SCHEMAS}) == 200


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_every_reply_is_json_that_fits(model: qwchat.Model, part: int) -> None:
    """Allow few tokens, so that many replies must be completed."""
    closed = 0
    for number, entry in enumerate(SCHEMAS[part::4]):
        constraint = Constraint.json_schema(json.dumps(entry["schema"]))
        messages = [{"role": "user", "content": "An example, please."}]
        *_, end = model.chat(
            messages,
            constraint=constraint,
            settings=WARM,
            seed=number,
            max_tokens=100,  # type: ignore[arg-type]
        )
        assert isinstance(end, Done)
        assert end.meets_constraint, entry
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # The validator warns about references of older drafts.
            assert list(validator(entry).iter_errors(json.loads(end.text))) == [], (entry, end.text)
        closed += end.finish_reason == "length"
    assert closed < 30


@pytest.mark.slow
def test_speculation_changes_nothing(model: qwchat.Model) -> None:
    """Use a conversation that contains JSON, so that prompt lookup finds drafts."""
    messages: list[Message] = [
        {"role": "user", "content": 'Repeat {"foo": [1, "a b"], "bar": {"a b": null}, "foo": [1, "a b"]} twice.'}
    ]
    drafted = 0
    for number, entry in enumerate(SCHEMAS[::10]):
        texts = []
        for speculate in (False, True):
            *_, end = model.chat(
                messages,
                constraint=Constraint.json_schema(json.dumps(entry["schema"])),
                settings=WARM,
                seed=number,
                max_tokens=60,
                speculate=speculate,
            )
            assert isinstance(end, Done)
            texts.append((end.token_ids, end.finish_reason))
            drafted += end.stats.drafted_tokens
        assert texts[0] == texts[1]
    assert drafted
