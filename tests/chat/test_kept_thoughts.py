"""Thoughts in the history of a conversation: kept with their cached tokens, or left out at a price."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

import qwchat
from qwchat.chat.continued_settings import settings_to_continue
from qwchat.chat.left_out_thought import left_out_notice
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.session import PendingReply, Session
from qwchat.events import Done
from qwchat.messages import Message
from qwchat.request import PromptOptions, SamplingParams
from tests.chat.fakes import replying
from tests.thinking import CLOSING_ID, OPENED, OPENING_ID, SWITCHED, encode_reply, follow, load_scripted
from tests.thinking import make_thinking_model as make_model

THOUGHT, ANSWER = "one two <|im_end|>", "Yes, hello 漢"
REPLY = {"open": f"{THOUGHT}\n</think>\n\n{ANSWER}", "optional": f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"}
KEPT = PromptOptions(keep_thoughts=True)


@pytest.fixture(scope="module", params=["open", "optional"])
def start(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def loaded(start: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[qwchat.Model]:
    folder = make_model(tmp_path_factory.mktemp(start), {"open": OPENED, "optional": SWITCHED}[start])
    with load_scripted(folder, REPLY[start]) as model:
        yield model


@pytest.fixture
def model(loaded: qwchat.Model, start: str) -> qwchat.Model:
    loaded.cached_context.clear()
    follow(loaded, REPLY[start])
    return loaded


def session_with(model: qwchat.Model, *, keep: bool) -> Session:
    settings = ReplySettings(SamplingParams(), seed=1).with_value("keep-thoughts", keep, "--keep-thoughts")
    return Session(model, settings)  # type: ignore[arg-type]  # The constraint of a Request is a protocol in the chat.


def answer(session: Session, reply: PendingReply) -> Done:
    done = list(replying(session, reply))[-1]
    assert isinstance(done, Done)
    return done


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("budget", [0, 5])
def test_kept_thoughts_stay_in_the_cache(model: qwchat.Model, start: str, thinking: bool, budget: int) -> None:
    session = session_with(model, keep=True)
    session.reply_settings = session.reply_settings.with_value("think-budget", budget, "")
    session.thinking = thinking
    for number in range(4):
        reply = session.ask(f"hello {number}")
        prompt, cached = session.prompt(reply), model.cached_ids
        assert list(prompt.ids[: len(cached)]) == list(cached)
        done = answer(session, reply)
        assert done.text == ANSWER
        assert done.stats.cached_tokens == len(cached)
        if thinking or start == "open":
            ids = list(prompt.ids)
            assert ids.count(OPENING_ID) == number + (start == "open")
            assert ids.count(CLOSING_ID) == number
            assert model.decode(ids).count("one") == number


def test_without_the_setting_the_template_leaves_thoughts_out(model: qwchat.Model, start: str) -> None:
    session = session_with(model, keep=False)
    answer(session, session.ask("hello"))
    reply = session.ask("and?")
    prompt = session.prompt(reply)
    assert "one two" not in model.decode(prompt.ids)
    assert model.decode(prompt.ids) == model.template.render(session.messages_to(reply.end))
    assert model.cached(prompt) < len(model.cached_ids)


def test_a_thought_that_was_never_closed_is_left_out_too(model: qwchat.Model, start: str) -> None:
    for keep in (False, True):
        model.cached_context.clear()
        session = session_with(model, keep=keep)
        session.reply_settings = session.reply_settings.with_value("max-tokens", 4, "")
        assert answer(session, session.ask("hello")).text == ""
        unfinished = session.reply().content
        assert session.prompt(session.continue_reply()).continued == 4
        reply = session.ask("and?")
        text = model.decode(session.prompt(reply).ids)
        assert (unfinished in text) == keep
        assert (model.cached(session.prompt(reply)) == len(model.cached_ids)) == keep


@pytest.mark.parametrize("content", ["a </think> b", "<think>\na </think> b", "c"])
def test_kept_replies_without_token_ids_are_encoded(model: qwchat.Model, start: str, content: str) -> None:
    messages: list[Message] = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": content},
        {"role": "user", "content": "and?"},
    ]
    ids = list(model.prompt(messages, options=KEPT).ids)
    thinks = content != "c"
    assert ids.count(OPENING_ID) == thinks + (start == "open")
    assert ids.count(CLOSING_ID) == thinks
    if thinks:
        before = "" if content.startswith("<think>") else "<think>\n"
        wanted = encode_reply(model.tokenizer, before + content)
        assert any(ids[place : place + len(wanted)] == wanted for place in range(len(ids)))


def test_the_cost_of_a_left_out_thought_is_named_if_it_is_noticeable(
    model: qwchat.Model, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_with(model, keep=False)
    reply = session.ask("hello")
    assert left_out_notice(session, reply, session.prompt(reply)) is None
    answer(session, reply)
    reply = session.ask("and?")
    prompt = session.prompt(reply)
    assert left_out_notice(session, reply, prompt) is None
    monkeypatch.setattr(type(model), "reevaluation_seconds", property(lambda self: 1.0 * len(self.cached_ids)))
    tokens = len(model.encode(ANSWER))
    notice = left_out_notice(session, reply, prompt)
    assert notice is not None
    found = int(notice.split()[1])
    assert tokens <= found <= tokens + 3
    assert notice == f"evaluating {found} tokens again without the last thought (/set keep-thoughts on keeps it)"
    session.reply_settings = session.reply_settings.with_value("keep-thoughts", True, "")
    kept = session.retry()
    assert left_out_notice(session, kept, session.prompt(kept)) is None
    model.cached_context.truncate(0)  # Then the whole conversation is evaluated again, with thoughts or without.
    assert left_out_notice(session, reply, prompt) is None


def test_an_interrupted_reply_continues_with_its_own_settings_of_thoughts() -> None:
    given = {"think-budget": 5, "keep-thoughts": True, "template-var": ("a=[1]", 'b="x"')}
    now = ReplySettings(SamplingParams())
    own = now
    for name, value in given.items():
        own = own.with_value(name, value, "--flag")
    recorded = json.loads(json.dumps(own.record()))
    continued = settings_to_continue(recorded, now, now)
    assert {name: continued[name] for name in given} == given
    assert continued.template_variables == {"a": [1], "b": "x"}
    assert settings_to_continue(now.record(), now, now) == now
    damaged = {"think_budget": -1, "keep_thoughts": "perhaps", "template_var": ["bos_token=1"]}
    assert settings_to_continue(damaged, now, now) == now
