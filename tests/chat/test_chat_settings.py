"""Settings in the chat: those of replies, of the engine and of the screen, and what a change costs."""

from __future__ import annotations

import io
from typing import Any

import pytest

from qwchat.chat.advice import explained
from qwchat.chat.chat_settings import ChatSettings
from qwchat.chat.commands import CommandContext, Outcome, Show, parse, suggestions
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.session import Session
from qwchat.chat.view.reply import ReplyView
from qwchat.chat.view.table import format_answer
from qwchat.errors import NotEnoughMemoryError, UsageError
from qwchat.markdown.styles import PLAIN
from qwchat.request import SamplingParams
from qwchat.settings.resolve import Settings, SourcedValue
from tests.chat.fakes import FakeModel, replying

SET = """\
setting            value        from
temp               0.7          the model's generation_config.json
top-p              1            built in
top-k              0            built in
min-p              0            built in
repeat-penalty     1            built in
presence-penalty   0            built in
frequency-penalty  0            built in
seed               5            --seed
max-tokens         none         built in
stop               none         built in
ctx                auto (2048)  built in
kv                 f32          QWCHAT_KV
speculate          on           built in
threads            auto (2)     built in
quiet              off          built in"""


def chat() -> tuple[CommandContext, FakeModel, list[Any]]:
    """A desk whose settings came from several places, its model, and what the screen was told."""
    model, told = FakeModel(), []
    settings = Settings({"seed": SourcedValue(5, "--seed"), "kv": SourcedValue("f32", "QWCHAT_KV")})
    session = Session(model, ReplySettings.of(settings, SamplingParams(temperature=0.7)))
    desk = CommandContext(session, "mini", ReplyView(io.StringIO(), PLAIN))
    desk.panel = ChatSettings(session, settings, model, {"quiet": told.append})
    return desk, model, told


def obey(desk: CommandContext, text: str) -> Outcome:
    command = parse(text)
    assert command is not None
    return command[0].run(desk, command[1])


def shown(desk: CommandContext, text: str) -> str:
    outcome = obey(desk, text)
    assert isinstance(outcome, Show)
    return format_answer(outcome.above, outcome.text)


def test_set_alone_shows_everything_and_its_origin() -> None:
    desk, _, _ = chat()
    shown_lines = shown(desk, "/set").splitlines()
    wanted = SET.splitlines()
    assert [line for line in shown_lines if line.split()[0] in {line.split()[0] for line in wanted}] == wanted


def test_the_engine_is_changed_and_the_cost_told() -> None:
    desk, model, _ = chat()
    assert shown(desk, "/set ctx 4096") == "ctx 4096"
    list(replying(desk.session, desk.session.ask("one two three")))
    assert shown(desk, "/set threads 1") == "threads 1"
    assert (model.threads, model.context, model.kv) == (1, 4096, "f32")
    assert shown(desk, "/set kv q8") == "kv q8; 8 tokens will be read again"
    assert shown(desk, "/set ctx") == (
        "ctx 4096 (from /set ctx)\nTokens of context (default: the model's, at most 4096). "
        "It takes a whole number of at least 1, or auto, or default."
    )
    assert shown(desk, "/set ctx default") == "ctx auto (2048)"
    assert shown(desk, "/set kv default") == "kv f32"
    assert shown(desk, "/set kv").splitlines()[0] == "kv f32 (from QWCHAT_KV)"


def test_only_tokens_that_will_be_read_again_are_announced() -> None:
    desk, model, _ = chat()
    for question in ("one two three", "four five six"):
        list(replying(desk.session, desk.session.ask(question)))
    assert model.count(desk.session.messages) == 18
    assert shown(desk, "/undo").startswith("“four five six” is taken back")
    assert shown(desk, "/set kv q8") == "kv q8; 9 tokens will be read again"
    list(replying(desk.session, desk.session.ask("four five six")))
    assert shown(desk, "/clear").startswith("the conversation is empty")
    assert shown(desk, "/set ctx 1000") == "ctx 1000"
    assert shown(desk, "/set kv f32") == "kv f32"


def test_a_longer_context_keeps_the_kind_of_cache_while_memory_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    desk, model, _ = chat()
    desk.panel = ChatSettings(desk.session, None, model)
    assert shown(desk, "/set ctx 4096") == "ctx 4096"
    assert model.kv == "q8", "nothing was read yet: auto chooses"
    assert shown(desk, "/set ctx 2048") == "ctx 2048"
    list(replying(desk.session, desk.session.ask("one two three")))
    assert shown(desk, "/set ctx 4096") == "ctx 4096"
    assert model.kv == "f32"
    assert shown(desk, "/set kv").startswith("kv auto (f32) (from built in)")
    whole = model.reconfigure

    def little_memory(*, threads: int | None, context: int | None, kv: str) -> int:
        if kv == "f32":
            raise NotEnoughMemoryError("there is no memory")
        return whole(threads=threads, context=context, kv=kv)

    monkeypatch.setattr(model, "reconfigure", little_memory)
    assert shown(desk, "/set ctx 4000") == "ctx 4000; 8 tokens will be read again"
    assert model.kv == "q8"


def test_a_context_that_is_too_small_is_told() -> None:
    desk, model, _ = chat()
    list(replying(desk.session, desk.session.ask("one two three")))
    tokens = model.count(desk.session.messages)
    assert shown(desk, "/set ctx 4") == f"ctx 4; the conversation has {tokens} tokens and does not fit in 4"


def test_what_cannot_be_done_changes_nothing() -> None:
    desk, model, _ = chat()
    with pytest.raises(UsageError) as error:
        obey(desk, "/set ctx 5000")
    limits = "must be from 1 to 4,096 tokens, the maximum of this model, not 5,000"
    assert (str(error.value), explained(error.value)) == (f"context {limits}", f"ctx {limits}")
    assert shown(desk, "/set ctx").startswith("ctx auto (2048) (from built in)")
    assert model.context == 2048


def test_the_look_is_changed_at_once() -> None:
    desk, _, told = chat()
    assert shown(desk, "/set quiet on") == "quiet on"
    assert shown(desk, "/set quiet default") == "quiet off"
    assert told == [True, False]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("/set model x", "model cannot be set in a chat: start with --model"),
        ("/set system x", "system cannot be set in a chat: /system TEXT sets it"),
        ("/set as", "as cannot be set in a chat: /as NAME takes one"),
        ("/set color never", "color cannot be set in a chat: start with --color"),
        ("/set tmp 1", "there is no setting 'tmp': did you mean temp?"),
        ("/set kv f8", "kv must be auto, f32 or q8, not 'f8'"),
    ],
)
def test_what_is_refused(text: str, complaint: str) -> None:
    desk, _, _ = chat()
    with pytest.raises(UsageError) as error:
        obey(desk, text)
    assert str(error.value) == complaint


def test_values_are_suggested() -> None:
    desk, _, _ = chat()
    assert [suggestion.text for suggestion in suggestions(desk, "/set kv ")] == ["auto", "f32", "q8", "default"]
    assert [(found.text, found.note) for found in suggestions(desk, "/set thr")] == [("threads", "auto (2)")]


def test_a_panel_of_a_session_alone_knows_the_reply_knobs() -> None:
    desk = CommandContext(
        Session(FakeModel(), ReplySettings(SamplingParams())), "mini", ReplyView(io.StringIO(), PLAIN)
    )
    assert "threads" not in shown(desk, "/set")
    with pytest.raises(UsageError, match=r"^threads cannot be set in a chat: start with --threads$"):
        obey(desk, "/set threads 2")


def test_a_system_prompt_takes_the_place_of_the_old_one_and_says_what_it_costs() -> None:
    desk, model, _ = chat()
    assert shown(desk, "/system Be brief.") == "this system prompt holds from the next message on"
    list(replying(desk.session, desk.session.ask("one two three")))
    text = shown(desk, "/system Be kind to me.")
    tokens = model.count(desk.session.messages)
    replaced = "this system prompt takes the place of the old one from the next message on"
    assert text == f"{replaced}; {tokens} tokens will be read again"
    assert [message["role"] for message in desk.session.messages] == ["system", "user", "assistant"]
    assert shown(desk, "/system Be kind to me.").endswith("from the next message on")
    tokens -= model.count(desk.session.messages[:1])
    assert (
        shown(desk, "/system none") == f"no system prompt from the next message on; {tokens} tokens will be read again"
    )
