"""Settings in the chat: reply, engine and display settings, and the cost of a change."""

from __future__ import annotations

import io
from typing import Any

import pytest

from qwchat.chat.advice import error_message
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
activations        8            built in
speculate          on           built in
threads            auto (2)     built in
quiet              off          built in"""


def chat() -> tuple[CommandContext, FakeModel, list[Any]]:
    """Return a command context whose settings have several origins, its model, and the display settings applied."""
    model, applied = FakeModel(), []
    settings = Settings({"seed": SourcedValue(5, "--seed"), "kv": SourcedValue("f32", "QWCHAT_KV")})
    session = Session(model, ReplySettings.from_settings(settings, SamplingParams(temperature=0.7)))
    context = CommandContext(session, "mini", ReplyView(io.StringIO(), PLAIN))
    context.settings = ChatSettings(session, settings, model, {"quiet": applied.append})
    return context, model, applied


def run_command(context: CommandContext, text: str) -> Outcome:
    command = parse(text)
    assert command is not None
    return command[0].run(context, command[1])


def shown(context: CommandContext, text: str) -> str:
    outcome = run_command(context, text)
    assert isinstance(outcome, Show)
    return format_answer(outcome.table, outcome.text)


def test_set_alone_shows_everything_and_its_origin() -> None:
    context, _, _ = chat()
    shown_lines = shown(context, "/set").splitlines()
    wanted = SET.splitlines()
    assert [line for line in shown_lines if line.split()[0] in {line.split()[0] for line in wanted}] == wanted


def test_an_engine_setting_is_changed_and_the_cost_reported() -> None:
    context, model, _ = chat()
    assert shown(context, "/set ctx 4096") == "ctx 4096"
    list(replying(context.session, context.session.ask("one two three")))
    assert shown(context, "/set threads 1") == "threads 1"
    assert (model.threads, model.context, model.kv) == (1, 4096, "f32")
    assert shown(context, "/set kv q8") == "kv q8; 8 tokens will be evaluated again"
    assert shown(context, "/set ctx") == (
        "ctx 4096 (/set ctx)\nContext window in tokens (default: the model's, max 4096). "
        "Values: a whole number of at least 1, or auto, or default."
    )
    assert shown(context, "/set ctx default") == "ctx auto (2048)"
    assert shown(context, "/set kv default") == "kv f32"
    assert shown(context, "/set kv").splitlines()[0] == "kv f32 (QWCHAT_KV)"


def test_other_activations_have_other_keys_and_values() -> None:
    context, model, _ = chat()
    list(replying(context.session, context.session.ask("one two three")))
    assert shown(context, "/set activations 16") == "activations 16; 8 tokens will be evaluated again"
    assert model.activations == 16
    assert shown(context, "/set threads 1") == "threads 1"
    assert model.activations == 16
    assert shown(context, "/set activations default") == "activations 8"
    with pytest.raises(UsageError, match=r"^activations must be 8 or 16, not '4'$"):
        shown(context, "/set activations 4")


def test_only_tokens_to_evaluate_again_are_announced() -> None:
    context, model, _ = chat()
    for question in ("one two three", "four five six"):
        list(replying(context.session, context.session.ask(question)))
    assert model.count(context.session.messages) == 18
    assert shown(context, "/undo").startswith("undid “four five six”")
    assert shown(context, "/set kv q8") == "kv q8; 9 tokens will be evaluated again"
    list(replying(context.session, context.session.ask("four five six")))
    assert shown(context, "/clear").startswith("cleared the conversation")
    assert shown(context, "/set ctx 1000") == "ctx 1000"
    assert shown(context, "/set kv f32") == "kv f32"


def test_a_longer_context_keeps_the_cache_format_while_memory_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    context, model, _ = chat()
    context.settings = ChatSettings(context.session, None, model)
    assert shown(context, "/set ctx 4096") == "ctx 4096"
    assert model.kv == "q8", "nothing was read yet: auto chooses"
    assert shown(context, "/set ctx 2048") == "ctx 2048"
    list(replying(context.session, context.session.ask("one two three")))
    assert shown(context, "/set ctx 4096") == "ctx 4096"
    assert model.kv == "f32"
    assert shown(context, "/set kv").startswith("kv auto (f32) (built in)")
    whole = model.reconfigure

    def little_memory(**options: Any) -> int:
        if options["kv"] == "f32":
            raise NotEnoughMemoryError("there is no memory")
        return whole(**options)

    monkeypatch.setattr(model, "reconfigure", little_memory)
    assert shown(context, "/set ctx 4000") == "ctx 4000; 8 tokens will be evaluated again"
    assert model.kv == "q8"


def test_a_context_too_small_for_the_conversation_is_reported() -> None:
    context, model, _ = chat()
    list(replying(context.session, context.session.ask("one two three")))
    tokens = model.count(context.session.messages)
    assert shown(context, "/set ctx 4") == f"ctx 4; the conversation has {tokens} tokens and does not fit into 4"


def test_what_cannot_be_done_changes_nothing() -> None:
    context, model, _ = chat()
    with pytest.raises(UsageError) as error:
        run_command(context, "/set ctx 5000")
    limits = "must be from 1 to 4,096 tokens, the maximum of this model, not 5,000"
    assert (str(error.value), error_message(error.value)) == (f"context {limits}", f"ctx {limits}")
    assert shown(context, "/set ctx").startswith("ctx auto (2048) (built in)")
    assert model.context == 2048


def test_display_settings_take_effect_at_once() -> None:
    context, _, applied = chat()
    assert shown(context, "/set quiet on") == "quiet on"
    assert shown(context, "/set quiet default") == "quiet off"
    assert applied == [True, False]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("/set model x", "use /model NAME to switch to another model"),
        ("/set system x", "use /system TEXT to change the system prompt"),
        ("/set as", "use /as NAME to apply a persona"),
        ("/set color never", "color cannot be changed in a chat: start qwchat with --color"),
        ("/set tmp 1", "there is no setting 'tmp': did you mean temp?"),
        ("/set kv f8", "kv must be auto, f32 or q8, not 'f8'"),
    ],
)
def test_what_is_refused(text: str, complaint: str) -> None:
    context, _, _ = chat()
    with pytest.raises(UsageError) as error:
        run_command(context, text)
    assert str(error.value) == complaint


def test_values_are_suggested() -> None:
    context, _, _ = chat()
    assert [suggestion.text for suggestion in suggestions(context, "/set kv ")] == ["auto", "f32", "q8", "default"]
    assert [(found.text, found.note) for found in suggestions(context, "/set thr")] == [("threads", "auto (2)")]


def test_settings_of_a_session_alone_are_the_reply_settings() -> None:
    context = CommandContext(
        Session(FakeModel(), ReplySettings(SamplingParams())), "mini", ReplyView(io.StringIO(), PLAIN)
    )
    assert "threads" not in shown(context, "/set")
    with pytest.raises(UsageError, match=r"^threads cannot be changed in a chat: start qwchat with --threads$"):
        run_command(context, "/set threads 2")


def test_a_new_system_prompt_replaces_the_old_one_and_says_what_it_costs() -> None:
    context, model, _ = chat()
    assert shown(context, "/system Be brief.") == "set the system prompt"
    list(replying(context.session, context.session.ask("one two three")))
    text = shown(context, "/system Be kind to me.")
    tokens = model.count(context.session.messages)
    replaced = "replaced the system prompt"
    assert text == f"{replaced}; {tokens} tokens will be evaluated again"
    assert [message["role"] for message in context.session.messages] == ["system", "user", "assistant"]
    assert shown(context, "/system Be kind to me.").endswith("the system prompt")
    tokens -= model.count(context.session.messages[:1])
    assert shown(context, "/system none") == f"removed the system prompt; {tokens} tokens will be evaluated again"
