"""Constraints as settings of a chat."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwchat.chat.continued_settings import settings_to_continue
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.session import Session
from qwchat.errors import UsageError
from qwchat.events import Done
from qwchat.request import SamplingParams
from tests.chat.fakes import FakeModel, replying
from tests.cli.runs import call

SCHEMA = '{"type":  "array",\n "items": {"type": "null"}}'
CONTROLS = ReplySettings(SamplingParams())


def test_one_constraint_replaces_another(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(SCHEMA)
    reply_settings = CONTROLS
    assert reply_settings.constraint is None
    for name, text, shown in (
        ("choices", r"yes, no\, never", r"yes,no\, never"),
        ("regex", r"\d+ \w", r"\d+ \w"),
        ("json-schema", str(file), '{"type": "array", "items": {"type": "null"}}'),
        ("choices", "a", "a"),
    ):
        reply_settings = reply_settings.changed(name, text, CONTROLS)
        assert reply_settings.display_value(name) == shown
        assert reply_settings.constraint is not None
        assert reply_settings.constraint.kind == name
        assert sum(reply_settings[other] is not None for other in ("choices", "regex", "json-schema")) == 1
    assert reply_settings.changed("regex", "none", CONTROLS).constraint == reply_settings.constraint
    assert reply_settings.changed("choices", "none", CONTROLS).constraint is None
    assert reply_settings.changed("choices", "default", CONTROLS) == CONTROLS


def test_the_record_of_a_reply_restores_its_constraint() -> None:
    bound = CONTROLS.changed("choices", r"yes,no\, never", CONTROLS)
    assert settings_to_continue(bound.record(), CONTROLS, CONTROLS).constraint == bound.constraint
    assert settings_to_continue({"json_schema": "/etc/hostname"}, CONTROLS, CONTROLS).constraint is None
    assert settings_to_continue({"regex": "x("}, CONTROLS, CONTROLS).constraint is None


def test_a_wrong_value_changes_nothing() -> None:
    with pytest.raises(UsageError, match=r"^regex: the regular expression cannot be used: unclosed group"):
        CONTROLS.changed("regex", "x(", CONTROLS)
    with pytest.raises(UsageError, match="json-schema: cannot read nowhere: No such file"):
        CONTROLS.changed("json-schema", "nowhere", CONTROLS)


def test_the_session_passes_the_constraint_to_the_model() -> None:
    model = FakeModel(replies=["no"])
    session = Session(model, CONTROLS.changed("choices", "yes,no", CONTROLS))
    *_, end = replying(session, session.ask("hi"))
    assert isinstance(end, Done)
    assert end.meets_constraint
    assert model.calls[0]["constraint"] == session.reply_settings.constraint


def test_in_a_chat(tmp_path: Path) -> None:
    typed = b"/set choices yes,no\nhi\n/set choices\n/set regex x(\n/set choices none\nhi\n"
    result = call("chat", "-q", models=tmp_path, stdin=typed, replies=["maybe", "fine"])
    assert result.stdout == b"maybe\nfine\n"
    assert result.stderr.decode().splitlines() == [
        "choices yes,no",
        "qwchat: error: the reply does not meet choices: a stop string ended it: /set stop none",
        "choices yes,no (/set choices)",
        r"Reply with one of these texts (repeatable; \, is a comma). "
        "Values: strings separated by commas, or none, or default.",
        "qwchat: error: regex: the regular expression cannot be used: unclosed group (character 2)",
        "choices none",
    ]
