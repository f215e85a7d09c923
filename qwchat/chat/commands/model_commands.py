"""The command that lists the models and switches between them."""

from __future__ import annotations

from collections.abc import Iterable

from qwchat.chat.chat_models import ChatModels, OpenedModel
from qwchat.chat.commands.command import ChatCommand, CommandContext, Outcome, Show
from qwchat.chat.display import Table
from qwchat.chat.formatting import evaluation_note
from qwchat.chat.reply_settings import MODEL_ORIGIN, SAMPLING_FIELDS, ReplySettings
from qwchat.chat.suggestions import Suggestion, match_suggestions
from qwchat.errors import UsageError


def _model(context: CommandContext, argument: str) -> Outcome:
    models = _models(context)
    if not argument:
        rows = [("*" if choice.current else "", choice.name, choice.size) for choice in models.choices()]
        return Show(table=Table(("", "model", "size"), rows, right=(2,)))
    opened = models.open(argument, context.settings.current)
    if opened is None:
        return Show(f"{context.model_name} is already the model of this chat")
    before = context.session.reply_settings
    try:
        context.session.switch_model(opened)
    except BaseException:
        models.discard(opened)
        raise
    models.keep(opened)
    context.settings.switch_model(opened.model)
    context.persona.switch_model(opened.defaults)
    context.recorder.set_model(opened.name, opened.fingerprint)
    context.model_name = opened.name
    bits = "" if opened.bits_per_weight is None else f" at {opened.bits_per_weight:.2f} bits per weight"
    text = f"switched to {opened.name}{bits}, context {opened.model.context:,} tokens{_cost(context, opened)}"
    return Show(text, hint=_changed_defaults(before, context.session.reply_settings))


def _models(context: CommandContext) -> ChatModels:
    """Return the models to choose from. Raises UsageError if this chat has one model alone."""
    if context.models is None:
        raise UsageError("the model of this chat cannot be changed")
    return context.models


def _cost(context: CommandContext, opened: OpenedModel) -> str:
    """Return what the new model has to evaluate, as the end of a sentence."""
    session = context.session
    if not session.turns or opened.model.host:
        return ""
    prompt = session.render(session.messages)
    return evaluation_note(prompt.tokens, prompt.tokens - opened.model.cached(prompt), opened.model.context)


def _changed_defaults(before: ReplySettings, now: ReplySettings) -> str:
    """Return the settings that the new model changes; "" for none."""
    changed = [
        f"{name} {now.display_value(name)}"
        for name in SAMPLING_FIELDS
        if now[name] != before[name] or (now.origin(name) == MODEL_ORIGIN != before.origin(name))
    ]
    return f"default settings of this model: {', '.join(changed)}" if changed else ""


def _complete_model(context: CommandContext, typed: str) -> Iterable[Suggestion]:
    if context.models is None:
        return ()
    return match_suggestions(
        typed, ((choice.name, "current" if choice.current else choice.size) for choice in context.models.choices())
    )


COMMANDS: tuple[ChatCommand, ...] = (
    ChatCommand(
        "model",
        "[NAME|URL]",
        "list the models, or switch to another one",
        _model,
        details="The new model evaluates the conversation again, with its own defaults for settings that you have not\n"
        "changed. If it cannot be opened, the chat continues with the current one. A URL such as\n"
        "http://localhost:8000 is that of a server; the name of a model there may follow after a space.",
        complete=_complete_model,
    ),
)
