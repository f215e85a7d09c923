"""The conversation: which turns are kept, retried and recorded."""

from __future__ import annotations

import pytest

from qwchat.chat.reply_settings import REPLY_SETTING_NAMES, ReplySettings
from qwchat.chat.session import Session
from qwchat.errors import PromptTooLongError, UsageError
from qwchat.events import Done, TextEvent, TextStep
from qwchat.request import SamplingParams
from tests.chat.fakes import FakeModel, replying

HOT = ReplySettings(SamplingParams(temperature=1.0))


def make(system: str | None = None, reply_settings: ReplySettings = HOT, **script: object) -> tuple[FakeModel, Session]:
    model = FakeModel(**script)  # type: ignore[arg-type]
    return model, Session(model, reply_settings, system)


def contents(session: Session) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in session.messages]


def end_of(events: object) -> Done:
    done = list(events)[-1]  # type: ignore[call-overload]
    assert isinstance(done, Done)
    return done


def test_every_turn_is_sent_again_with_the_system_prompt_first() -> None:
    model, session = make("Be brief.", replies=["One.", "Two."])
    end_of(replying(session, session.ask("first")))
    end_of(replying(session, session.ask("second")))
    assert [(m["role"], m["content"]) for m in model.asked[1]] == [
        ("system", "Be brief."),
        ("user", "first"),
        ("assistant", "One."),
        ("user", "second"),
    ]
    assert session.turns[1]["token_ids"] == (0,)


def test_an_abandoned_reply_keeps_its_text() -> None:
    _, session = make(replies=["one two three"])
    events = replying(session, session.ask("count"))
    said = [event.text for event in events_until(events, 2)]
    events.close()
    assert contents(session) == [("user", "count"), ("assistant", "".join(said))]
    assert session.turns[1]["token_ids"] == (0, 1)


def events_until(events: object, texts: int) -> list[TextStep]:
    found: list[TextStep] = []
    for event in events:  # type: ignore[attr-defined]
        if isinstance(event, TextStep):
            found.append(event)
        if len(found) == texts:
            break
    return found


def test_a_reply_cancelled_before_its_first_token_leaves_only_the_message() -> None:
    model, session = make(replies=["first", "second"])
    assert end_of(replying(session, session.ask("question"), lambda: True)).finish_reason == "cancelled"
    assert session.turns == []
    end_of(replying(session, session.retry()))
    assert contents(session) == [("user", "question"), ("assistant", "second")]
    assert len(model.asked[1]) == 1


def test_an_empty_reply_that_the_model_ended_is_kept() -> None:
    _, session = make(replies=[""])
    end_of(replying(session, session.ask("anything?")))
    assert contents(session) == [("user", "anything?"), ("assistant", "")]


def test_a_prompt_that_does_not_fit_leaves_no_trace() -> None:
    _, session = make(context_size=4)
    with pytest.raises(PromptTooLongError):
        replying(session, session.ask("one two three four five")).send(None)
    assert session.turns == []


def test_retry_replaces_the_last_reply_with_another_seed() -> None:
    model, session = make(reply_settings=ReplySettings(SamplingParams(temperature=1.0), seed=5), replies=["old", "new"])
    end_of(replying(session, session.ask("question")))
    done = end_of(replying(session, session.retry()))
    assert contents(session) == [("user", "question"), ("assistant", "new")]
    assert [(m["role"], m["content"]) for m in model.asked[1]] == [("user", "question")]
    assert model.calls[0]["seed"] == 5
    assert done.seed != 5


def test_a_retry_that_says_nothing_keeps_the_old_reply() -> None:
    _, session = make(replies=["old", "new"])
    end_of(replying(session, session.ask("question")))
    end_of(replying(session, session.retry(), lambda: True))
    assert contents(session) == [("user", "question"), ("assistant", "old")]


def test_retry_and_clear_without_a_message() -> None:
    _, session = make()
    with pytest.raises(UsageError, match="there is no message yet"):
        end_of(replying(session, session.retry()))
    end_of(replying(session, session.ask("question")))
    session.clear()
    assert session.messages == []
    with pytest.raises(UsageError, match="there is no message left: /redo restores undone turns"):
        end_of(replying(session, session.retry()))


def test_a_seed_is_drawn_for_every_reply_unless_one_is_set() -> None:
    model, session = make()
    seeds = {end_of(replying(session, session.ask("again"))).seed for _ in range(4)}
    assert len(seeds) == 4
    session.reply_settings = session.reply_settings.changed("seed", "11", session.defaults)
    assert end_of(replying(session, session.ask("again"))).seed == 11
    assert model.calls[-1]["seed"] == 11


def test_speculation_is_on_until_switched_off() -> None:
    model, session = make()
    for value, expected in (("on", True), ("off", False), ("default", True)):
        session.reply_settings = session.reply_settings.changed("speculate", value, session.defaults)
        end_of(replying(session, session.ask("hello")))
        assert model.calls[-1]["speculate"] is expected


def test_reply_settings_are_shown_and_changed_by_name() -> None:
    reply_settings = ReplySettings(SamplingParams(temperature=0.7, top_k=20), seed=3)
    assert {name: reply_settings.display_value(name) for name in REPLY_SETTING_NAMES} == {
        "temp": "0.7",
        "top-p": "1",
        "top-k": "20",
        "min-p": "0",
        "repeat-penalty": "1",
        "presence-penalty": "0",
        "frequency-penalty": "0",
        "seed": "3",
        "max-tokens": "none",
        "think-budget": "0",
        "keep-thoughts": "off",
        "stop": "none",
        "choices": "none",
        "regex": "none",
        "json-schema": "none",
        "template-var": "none",
        "speculate": "on",
        "loop-guard": "1000",
        "overflow": "ask",
    }
    changed = reply_settings
    typed = {"--temp": "0", "TOP_K": "5", "seed": "random", "max-tokens": "9", "stop": "the end", "speculate": "off"}
    for name, value in typed.items():
        changed = changed.changed(name, value, reply_settings)
    assert (changed.sampling.temperature, changed.sampling.top_k) == (0.0, 5)
    assert (changed.seed, changed.max_tokens, changed.stop) == (None, 9, ("the end",))
    assert not changed.speculate
    for name in REPLY_SETTING_NAMES:
        changed = changed.changed(name, "default", reply_settings)
    assert changed == reply_settings
    assert changed.changed("max-tokens", "none", reply_settings).max_tokens is None
    assert changed.changed("stop", "none", reply_settings).stop == ()


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("temp", "warm", "temp must be a number from 0 to 5, not 'warm'"),
        ("temp", "6", "temp must be from 0 to 5, not 6"),
        ("top-k", "1.5", "top-k must be a whole number of at least 0, not '1.5'"),
        ("seed", "-1", "seed must be from 0 to 18446744073709551615, not -1"),
        ("max-tokens", "0", "max-tokens must be at least 1, not 0"),
        ("speculate", "maybe", "speculate must be on or off, not 'maybe'"),
        ("topk", "1", "there is no setting 'topk': did you mean top-k\\?"),
        ("colour", "1", "there is no setting 'colour': choose from temp, top-p, "),
    ],
)
def test_invalid_settings(name: str, value: str, complaint: str) -> None:
    reply_settings = ReplySettings(SamplingParams())
    with pytest.raises(UsageError, match=complaint):
        reply_settings.changed(name, value, reply_settings)


def test_events_pass_through_unchanged() -> None:
    _, session = make(replies=["one two"])
    kinds: list[type[TextEvent]] = [type(event) for event in replying(session, session.ask("hi"))]
    assert [kind.__name__ for kind in kinds] == ["Prefilled", "TextStep", "TextStep", "Done"]
