"""Commands that change what the model receives: attached files, and dropped or summarised turns."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from qwchat.chat import attachments, context_budget, mentions
from qwchat.chat.commands.command import ChatCommand, CommandContext, Outcome, Show, StreamSummary
from qwchat.chat.session import Session
from qwchat.chat.suggestions import Suggestion
from qwchat.errors import UsageError

_DIGITS = 9  # Longer numbers make no sense, and Python refuses to parse very long ones.


def _file(context: CommandContext, argument: str) -> Outcome:
    encode = context.session.model.encode
    if argument == "none":
        context.attached.clear()
        return Show("no file goes with the next message")
    notices: tuple[str, ...] = ()
    if argument:
        found = attachments.load_files(mentions.unquote(argument))
        context.attached += [attachment for attachment in found.attachments if attachment not in context.attached]
        notices = found.notices
    if not context.attached:
        return Show("no file goes with the next message: /file PATH takes one along")
    counted = [(attachment, len(encode(attachment.block()))) for attachment in context.attached]
    lines = [*notices, *attachments.file_lines(counted), f"{attachments.files_total(counted)}: with the next message"]
    return Show("\n".join(lines))


def _complete_file(context: CommandContext, typed: str) -> Iterable[Suggestion]:
    for suggestion in mentions.suggestions(f"@{typed}"):
        yield Suggestion(suggestion.text.removeprefix("@"), suggestion.replaced - 1)


def _context(context: CommandContext, argument: str) -> Outcome:
    session = context.session
    model = session.model
    used = context_budget.ContextMeter(session).tokens
    rows = [(f"{used:,}", f"of {model.context:,} tokens before the next message")]
    if session.system is not None:
        rows.append((f"{len(model.encode(session.system)):,}", "system prompt"))
    rows += [
        (f"{len(model.encode(drop.summary)):,}", f"summary of {len(drop.ids):,} turns")
        for drop in session.tree.active_drops(session.end)
        if drop.summary is not None
    ]
    rows.append(
        (
            f"{context_budget.reserved_for_reply(model.context, session.reply_settings.max_tokens):,}",
            "kept for the answer",
        )
    )
    dropped = context_budget.unsent_counts(session, session.end)["dropped"]
    rows += [(f"{dropped:,}", "turns are not sent any more: /drop none sends them again")] if dropped else []
    width = max(len(number) for number, _ in rows)
    return Show("\n".join(f"{number:>{width}} {what}" for number, what in rows))


def _drop(context: CommandContext, argument: str) -> Outcome:
    session = context.session
    if argument == "none":
        if not session.tree.dropped(session.end):
            return Show("every turn is sent")
        context_budget.send_all(session)
        return Show(f"every turn is sent again; context {_usage(session)}")
    count = context_budget.drop(session, session.end, _count("drop", argument))
    prompt = session.model.prompt(session.messages)
    return Show(context_budget.measure_reduction("dropped", session, session.end, count, prompt).marker())


def _summarise(context: CommandContext, argument: str) -> Outcome:
    session = context.session
    count = _count("summarise", argument) or context_budget.exchanges_to_summarise(session, session.end)
    named = context_budget.exchanges_text(count)
    return StreamSummary(
        partial(context_budget.summarise, session, session.end, count),
        f"this will stand for {named}, which {'is' if count == 1 else 'are'} not sent any more then:",
    )


def _count(command: str, argument: str) -> int | None:
    if not argument:
        return None
    if not argument.isdecimal() or len(argument) > _DIGITS:
        raise UsageError(f"/{command} takes a number of exchanges, not {argument}")
    return int(argument)


def _usage(session: Session) -> str:
    return f"{context_budget.ContextMeter(session).tokens:,}/{session.model.context:,}"


def _complete_drop(context: CommandContext, typed: str) -> Iterable[Suggestion]:
    return [Suggestion("none", len(typed), "send every turn again")] if "none".startswith(typed) else []


COMMANDS: tuple[ChatCommand, ...] = (
    ChatCommand(
        "file",
        "[PATH]",
        "take a file along with the next message (none: no file)",
        _file,
        details="PATH may be a pattern (src/**/*.py) and may end in lines (notes.md:10-80). In a message @PATH does\n"
        'the same: @src/app.py:10-80, @"two words.txt". @@ writes a plain @ where a file of that name exists.',
        complete=_complete_file,
    ),
    ChatCommand("context", "", "how full the context is, and with what", _context),
    ChatCommand(
        "drop",
        "[N]",
        "send the N oldest exchanges no more (none: send all again)",
        _drop,
        details="Without N as many as leave a quarter of the context free. They stay in the conversation, and the\n"
        "last exchange stays in the context. What is left is read again, since it begins otherwise now.",
        complete=_complete_drop,
    ),
    ChatCommand(
        "summarise",
        "[N]",
        "put a summary by the model in place of the N oldest exchanges",
        _summarise,
        details="Without N for as many as leave a quarter of the context free. /drop none sends them again.",
    ),
)
