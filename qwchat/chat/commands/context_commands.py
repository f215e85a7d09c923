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
        return Show("no files are attached")
    notices: tuple[str, ...] = ()
    if argument:
        found = attachments.load_files(mentions.unquote(argument))
        context.attached += [attachment for attachment in found.attachments if attachment not in context.attached]
        notices = found.notices
    if not context.attached:
        return Show("no files are attached: /file PATH attaches one")
    counted = [(attachment, len(encode(attachment.block()))) for attachment in context.attached]
    lines = [
        *notices,
        *attachments.file_lines(counted),
        f"attached to the next message: {attachments.files_total(counted)}",
    ]
    return Show("\n".join(lines))


def _complete_file(context: CommandContext, typed: str) -> Iterable[Suggestion]:
    for suggestion in mentions.suggestions(f"@{typed}"):
        yield Suggestion(suggestion.text.removeprefix("@"), suggestion.replaced - 1)


def _context(context: CommandContext, argument: str) -> Outcome:
    session = context.session
    model = session.model
    used = context_budget.ContextMeter(session).prompt
    estimated = f" (estimate: the tokenizer is on {model.host})" if used.estimated else ""
    rows = [(f"{used.tokens:,}", f"of {model.context:,} tokens used{estimated}")]
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
            "reserved for the reply",
        )
    )
    dropped = context_budget.unsent_counts(session, session.end)["dropped"]
    rows += [(f"{dropped:,}", "dropped turns (/drop none sends them again)")] if dropped else []
    width = max(len(number) for number, _ in rows)
    return Show("\n".join(f"{number:>{width}} {what}" for number, what in rows))


def _drop(context: CommandContext, argument: str) -> Outcome:
    session = context.session
    if argument == "none":
        if not session.tree.dropped(session.end):
            return Show("all turns are sent")
        context_budget.send_all(session)
        return Show(f"all turns are sent again; context {_usage(session)}")
    count = context_budget.drop(session, session.end, _count("drop", argument))
    prompt = session.render(session.messages)
    return Show(context_budget.measure_reduction("dropped", session, session.end, count, prompt).marker())


def _summarise(context: CommandContext, argument: str) -> Outcome:
    session = context.session
    count = _count("summarise", argument) or context_budget.exchanges_to_summarise(session, session.end)
    named = context_budget.exchanges_text(count)
    return StreamSummary(
        partial(context_budget.summarise, session, session.end, count),
        f"summary that replaces {named}:",
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
    return [Suggestion("none", len(typed), "send all turns again")] if "none".startswith(typed) else []


COMMANDS: tuple[ChatCommand, ...] = (
    ChatCommand(
        "file",
        "[PATH]",
        "attach a file to the next message (none: no files)",
        _file,
        details="PATH may be a pattern (src/**/*.py) and may end with a line range (notes.md:10-80). @PATH in a\n"
        'message does the same: @src/app.py:10-80, @"two words.txt". Type @@ for a plain @ if a file has that name.',
        complete=_complete_file,
    ),
    ChatCommand("context", "", "show how the context is used", _context),
    ChatCommand(
        "drop",
        "[N]",
        "stop sending the N oldest exchanges (none: send all again)",
        _drop,
        details="Without N, it drops as many as needed to free a quarter of the context. They stay in the\n"
        "conversation. The last exchange is never dropped. The rest of the prompt is evaluated again.",
        complete=_complete_drop,
    ),
    ChatCommand(
        "summarise",
        "[N]",
        "replace the N oldest exchanges with a summary",
        _summarise,
        details="The model writes the summary. Without N, it replaces as many exchanges as needed to free a quarter\n"
        "of the context. /drop none sends them again.",
    ),
)
