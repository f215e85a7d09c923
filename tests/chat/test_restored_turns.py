"""Turns restored from their events, as in a session that another process continues."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qwchat.chat.commands import CommandContext
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.session import Session
from qwchat.conversation.tree import Event, Tree
from qwchat.request import SamplingParams
from tests.chat.fakes import FakeModel, replying
from tests.chat.test_turn_commands import HOT, make, stream


def other_process(
    context: CommandContext, recorded: list[Event], reply_settings: ReplySettings = HOT
) -> tuple[FakeModel, CommandContext]:
    """Return the same conversation, restored from its events, in a process with other settings."""
    model = FakeModel(context.session.model.replies)  # type: ignore[attr-defined]
    tree = Tree.replay(json.loads(json.dumps(recorded)))
    session = Session(model, reply_settings, tree=tree, fingerprint="0123abcd")
    return model, CommandContext(session, "mini", context.view)


@pytest.fixture
def recorded_context() -> tuple[FakeModel, CommandContext, list[Event]]:
    model, context = make("one two three", reply_settings=replace(HOT, seed=3, stop=("END",)))
    recorded: list[Event] = []
    context.session.tree.listener = recorded.append
    return model, context, recorded


def test_a_message_is_recorded_before_its_reply_begins(
    recorded_context: tuple[FakeModel, CommandContext, list[Event]],
) -> None:
    model, context, recorded = recorded_context
    events = replying(context.session, context.session.ask("count"))
    next(events)
    # The process is killed here.
    assert [event["node"]["content"] for event in recorded] == ["count"]
    assert recorded[0]["node"]["seed"] == 3
    after, resumed = other_process(context, recorded, ReplySettings(SamplingParams()))
    assert stream(resumed, "/continue").text == "one two three"
    assert after.calls[0] == model.calls[0]


def test_a_restored_reply_can_be_continued(recorded_context: tuple[FakeModel, CommandContext, list[Event]]) -> None:
    model, context, recorded = recorded_context
    stream(context, "count", stop_after=2)
    after, resumed = other_process(context, recorded, ReplySettings(SamplingParams()))
    assert stream(resumed, "/continue").text == "one two three"
    assert (after.calls[0]["settings"], after.calls[0]["seed"]) == (model.calls[0]["settings"], 3)
    assert after.calls[0]["stop"] == ("END",)


@pytest.mark.parametrize(
    "claimed",
    [
        {"settings": {"temperature": "warm", "stop": [5], "top_k": 1.5, "nothing": 1}},
        {"settings": {"temperature": None, "stop": {"a": 1}, "min_p": 7}},
        {"token_ids": [10**9], "seed": None},
        {"token_ids": [0, 0], "model": "feedf00d"},
    ],
)
def test_a_file_may_claim_anything(
    recorded_context: tuple[FakeModel, CommandContext, list[Event]], claimed: dict[str, object]
) -> None:
    _, context, recorded = recorded_context
    stream(context, "count", stop_after=2)
    recorded[-1]["node"] |= claimed
    recorded[-1]["node"] = {name: value for name, value in recorded[-1]["node"].items() if value is not None}
    after, resumed = other_process(context, recorded)
    assert stream(resumed, "/continue").text == "one two three"
    assert after.calls[0]["settings"] == HOT.sampling
    if "token_ids" in claimed:
        assert "token_ids" not in after.asked[0][-1]
