"""The context budget with the real engine and the embedded model."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import qwchat
from quant import convert
from qwchat.chat import context_budget
from qwchat.chat.attachments import Attachment, compose_message
from qwchat.chat.context_budget import ContextFullError, ContextMeter
from qwchat.chat.overflow import OverflowHandler
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.reply_stream import StartReply
from qwchat.chat.session import PendingReply, Session
from qwchat.chat.view.screen import Screen
from qwchat.conversation.tree import Tree
from qwchat.errors import PromptTooLongError
from qwchat.events import Done, Prefilled, TextEvent
from qwchat.markdown.styles import PLAIN
from qwchat.models_folder import embedded_checkpoint
from qwchat.request import SamplingParams

SIZE = 320


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("room") / "mini"
    list(convert(embedded_checkpoint(), destination))
    return destination


@pytest.fixture
def model(folder: Path) -> Iterator[qwchat.Model]:
    with qwchat.load(folder, threads=2, context=SIZE) as loaded:
        yield loaded


class Conversation:
    """A greedy conversation under an overflow policy, with the events of its newest reply."""

    def __init__(self, model: qwchat.Model, policy: str, system: str | None = None) -> None:
        reply_settings = ReplySettings(SamplingParams())
        self.saved: list[dict[str, object]] = []
        tree = Tree(self.saved.append)
        self.session = Session(model, reply_settings.changed("overflow", policy, reply_settings), system, tree=tree)
        self.stderr = io.StringIO()
        self.overflow = OverflowHandler(self.session, Screen(self.stderr, PLAIN, quiet=True), None)
        self.played: list[list[TextEvent]] = []

    def play(self, begin: StartReply) -> Done:
        self.played.append([])  # Stays empty if the reply never begins.
        for event in begin(lambda: False):
            self.played[-1].append(event)
        done = self.played[-1][-1]
        assert isinstance(done, Done)
        return done

    def say(self, text: str) -> Done:
        return self.answer(self.session.ask(text))

    def answer(self, reply: PendingReply) -> Done:
        prompt = self.overflow.fit(reply, self.session.prompt(reply), self.play)
        assert prompt is not None
        return self.play(partial(self.session.stream, reply, prompt))


def test_the_counted_tokens_are_the_evaluated_ones(model: qwchat.Model) -> None:
    conversation = Conversation(model, "error", "Be brief.")
    meter = ContextMeter(conversation.session)
    for text in ("What is 2 + 3?", compose_message([Attachment("a.py", "x = 1\n```\n<|im_end|>")], "Why? 日本")):
        expected = model.count([*conversation.session.messages, {"role": "user", "content": text}])
        done = conversation.say(text)
        assert done.stats.prompt_tokens == expected
        assert meter.tokens == model.count(conversation.session.messages)
        assert meter.tokens >= done.stats.prompt_tokens + len(done.token_ids)
    replied = conversation.session.messages
    assert model.count(replied, continuing=True) == done.stats.prompt_tokens + len(done.token_ids)


def test_turns_after_dropped_ones_are_evaluated_again_once(model: qwchat.Model) -> None:
    conversation = Conversation(model, "drop", "Be brief.")
    before = None
    for number in range(40):
        done = conversation.say(f"What is {number} + 1?")
        if "──" in conversation.stderr.getvalue():
            break
        before = done
        assert done.stats.prompt_tokens - done.stats.cached_tokens < 30, "a follow-up reads what is new"
    assert before is not None
    kept = len(model.encode("Be brief.")) + 16
    assert done.stats.cached_tokens <= kept, "little more than the system prompt still agrees with what was read"
    assert done.stats.prompt_tokens <= SIZE * 3 // 4
    assert conversation.stderr.getvalue().startswith("── dropped the ")
    assert conversation.stderr.getvalue().endswith(f"; context {done.stats.prompt_tokens}/{SIZE} ──\n")
    following = conversation.say("What is 50 + 1?")
    assert following.stats.prompt_tokens - following.stats.cached_tokens < 30
    assert following.stats.context_used <= SIZE
    again = Session(model, conversation.session.reply_settings, tree=Tree.replay(conversation.saved))
    assert again.messages == conversation.session.messages


def test_a_reply_that_fills_the_context_continues(model: qwchat.Model) -> None:
    conversation = Conversation(model, "error")
    while ContextMeter(conversation.session).tokens < SIZE - 60:
        conversation.say("What is 2 + 3?")
    done = conversation.say("What can you do?")
    assert done.finish_reason == "context"
    assert done.stats.context_used == SIZE
    with pytest.raises(ContextFullError, match=f"the context holds {SIZE}"):
        conversation.answer(conversation.session.continue_reply())
    reply_settings = conversation.session.reply_settings
    conversation.session.reply_settings = reply_settings.changed("overflow", "drop", reply_settings)
    longer = conversation.answer(conversation.session.continue_reply())
    assert longer.finish_reason == "stop"
    assert longer.text.startswith(done.text)
    assert len(longer.token_ids) > len(done.token_ids)
    assert conversation.stderr.getvalue().startswith("── dropped the ")
    assert conversation.session.reply().content == longer.text


def test_a_summary_reuses_the_cached_tokens(model: qwchat.Model) -> None:
    conversation = Conversation(model, "drop")
    for number in range(6):
        conversation.say(f"What is {number} + 1?")
    end = conversation.session.end
    old = model.count(conversation.session.messages_to(conversation.session.tree.path()[7].id))
    events = list(context_budget.summarise(conversation.session, end, 4, None))
    read = next(event for event in events if isinstance(event, Prefilled))
    assert read.cached >= old - 6, "what is summarised begins as the conversation does"
    done = events[-1]
    assert isinstance(done, Done)
    first = conversation.session.messages[0]
    assert first == {"role": "user", "content": f"Summary of the earlier conversation:\n\n{done.text.strip()}"}
    assert len(conversation.session.messages) == 5
    assert conversation.say("What is 9 + 1?").stats.prompt_tokens <= SIZE


def test_a_prompt_that_does_not_fit_is_refused_before_the_prefill(model: qwchat.Model) -> None:
    conversation = Conversation(model, "error")
    with pytest.raises(
        PromptTooLongError, match=rf"and the context holds {SIZE}, including one for the reply: shorten"
    ):
        conversation.say("word " * SIZE)
    conversation.session.undo()
    conversation.say("What is 2 + 3?")
    read = model.cached_context.length
    question = "word " * SIZE
    while model.count([{"role": "user", "content": question}]) >= SIZE:
        question = question.removesuffix("word ")
    with pytest.raises(ContextFullError, match="drop old turns, or use a longer context"):
        conversation.say(question)
    assert model.cached_context.length == read
