"""Commands for saved sessions, and for writing the conversation to a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qwchat.chat.commands.command import ChatCommand, CommandContext, Outcome, Show
from qwchat.chat.context_budget import unsent_notice
from qwchat.chat.display import Table
from qwchat.chat.path_completion import complete_path
from qwchat.chat.recap import UNANSWERED, conversation_length, last_exchange
from qwchat.chat.suggestions import Suggestion, match_suggestions
from qwchat.conversation.export import EXPORT_FORMATS, ExportFormat, Transcript, export_transcript, file_name, format_of
from qwchat.conversation.session_store import SessionEntry, SessionStore, check_name
from qwchat.conversation.title import clean_line
from qwchat.errors import SessionError, UsageError
from qwchat.text_files import expand_path, real_path, write_atomically

_MAX_SESSIONS_LISTED = 15


def _save(context: CommandContext, argument: str) -> Outcome:
    if not argument:
        raise UsageError("/save needs the name of a file, as in /save talk.md")
    path = expand_path(argument)
    return _write_transcript(context, path, format_of(path))


def _export(context: CommandContext, argument: str) -> Outcome:
    word, _, name = argument.partition(" ")
    form = next((form for form in EXPORT_FORMATS if form == word.lower()), None)
    if form is None:
        raise UsageError(
            f"/export takes md, html or json, not {clean_line(word)!r}" if word else "/export md, html or json?"
        )
    return _write_transcript(
        context, expand_path(name.strip()) if name.strip() else Path(file_name(_transcript(context), form)), form
    )


def _write_transcript(context: CommandContext, path: Path, form: ExportFormat) -> Outcome:
    text = export_transcript(_transcript(context), form)
    write_atomically(path, text, overwrite=real_path(path) in context.written)
    context.written.add(real_path(path))
    return Show(f"saved to {path}")


def _transcript(context: CommandContext) -> Transcript:
    reply_settings = context.session.reply_settings
    settings = reply_settings.record() | {"seed": reply_settings.seed}
    return Transcript(
        context.session.tree, context.model_name, context.recorder.id or "", context.recorder.created, settings
    )


def _title(context: CommandContext, argument: str) -> Outcome:
    tree = context.session.tree
    if argument:
        title = clean_line(argument)
        if not title:
            raise UsageError("a title needs a letter or another character that can be seen")
        tree.set_title(title)
    return Show(f"the session is called {_transcript(context).title}" if argument else _transcript(context).title)


def _sessions(context: CommandContext, argument: str) -> Outcome:
    entries = _store(context).entries()
    wanted = argument.casefold()
    found = [entry for entry in entries if wanted in f"{entry.id} {entry.label}".casefold()]
    if not found:
        return Show(
            f"no session has {clean_line(argument)!r} in its title" if argument else "there are no sessions yet"
        )
    rows = [
        (_current_mark(context, entry), entry.id, entry.changed_local, str(entry.messages), entry.label)
        for entry in found
    ]
    shown = Table(("", "id", "last said", "messages", "title"), rows[:_MAX_SESSIONS_LISTED], right=(3,))
    more = (
        f"and {len(rows) - _MAX_SESSIONS_LISTED} more: qwchat sessions list" if len(rows) > _MAX_SESSIONS_LISTED else ""
    )
    return Show(more, table=shown)


def _current_mark(context: CommandContext, entry: SessionEntry) -> str:
    return "*" if entry.id == context.recorder.id else ""


def _resume(context: CommandContext, argument: str) -> Outcome:
    entry = _store(context).find(argument) if argument else _choose_session(context)
    if entry is None:
        return Show("this session goes on")
    if entry.id == context.recorder.id:
        return Show("this session is the one that goes on here")
    context.session.switch_tree(context.recorder.open(entry))
    notice = context.recorder.set_model(context.recorder.model, context.recorder.fingerprint)
    lines = [
        f"{entry.id} ({entry.label}) goes on, {conversation_length(context.session.tree)}",
        notice,
        unsent_notice(context.session),
    ]
    text = "\n".join(line for line in lines if line)
    if not (context.session.tree.path() and context.view.is_terminal):
        return Show(text)
    question, reply = last_exchange(context.session.tree)
    return Show(text, question if reply is not None else f"{question}\n{UNANSWERED}", reply, as_reply=True)


def _choose_session(context: CommandContext) -> SessionEntry | None:
    others = [entry for entry in _store(context).entries() if entry.id != context.recorder.id]
    if context.choose is None:
        raise UsageError("/resume needs a session, as in /resume seas: /sessions lists them")
    if not others:
        raise UsageError("there is no other session to resume")
    return context.choose(others)


def _new(context: CommandContext, argument: str) -> Outcome:
    system = context.session.system
    context.session.switch_tree(context.recorder.start(name=_check_new_name(context, argument)))
    context.session.system = system
    return Show("a new session begins with the next message")


def _fork(context: CommandContext, argument: str) -> Outcome:
    if not context.session.tree.path():
        raise UsageError("nothing was said yet, so there is nothing to fork")
    context.session.switch_tree(context.recorder.start(context.session.tree.fork(), _check_new_name(context, argument)))
    session = context.recorder.name or context.recorder.id
    return Show("a copy of the conversation goes on here" + (f", as session {session}" if session else ""))


def _check_new_name(context: CommandContext, argument: str) -> str:
    """Return `argument` after checking that no session has that name; "" stands for no name."""
    if argument and _store(context).named(check_name(argument)) is not None:
        raise UsageError(f"there is a session {argument} already: /resume {argument} goes on with it")
    return argument


def _store(context: CommandContext) -> SessionStore:
    return context.recorder.store or SessionStore()


def _complete_session(context: CommandContext, typed: str) -> Iterable[Suggestion]:
    try:
        entries = _store(context).entries()
    except SessionError:
        return ()
    return match_suggestions(
        typed, ((entry.name or entry.id, entry.title) for entry in entries if entry.id != context.recorder.id)
    )


def _complete_export(context: CommandContext, typed: str) -> Iterable[Suggestion]:
    form, blank, name = typed.partition(" ")
    if not blank:
        return match_suggestions(form, ((form, "") for form in EXPORT_FORMATS))
    return complete_path(name.lstrip())


COMMANDS: tuple[ChatCommand, ...] = (
    ChatCommand(
        "save",
        "FILE",
        "write the conversation as Markdown, or as .html or .json",
        _save,
        details="The conversation up to here, without alternatives. A file that this chat did not write is left alone.",
        complete=lambda _, typed: complete_path(typed),
    ),
    ChatCommand(
        "export",
        "md|html|json [FILE]",
        "write the conversation in that form",
        _export,
        details="Without FILE it goes into the current folder, under the conversation's title.",
        complete=_complete_export,
    ),
    ChatCommand("title", "[TEXT]", "show or change what the session is called", _title),
    ChatCommand("sessions", "[TEXT]", "list the sessions, or those with TEXT in their title", _sessions),
    ChatCommand(
        "resume",
        "[SESSION]",
        "leave this session and go on with another",
        _resume,
        details="SESSION is a name, an id or how it begins, or part of a title; without it you choose from a list. The "
        "model and the settings stay.",
        complete=_complete_session,
    ),
    ChatCommand(
        "fork",
        "[NAME]",
        "go on in a new session that begins with this conversation",
        _fork,
        details="The session so far stays as it is, with all alternatives.",
    ),
    ChatCommand(
        "new",
        "[NAME]",
        "leave this session and begin another",
        _new,
        details="The system prompt and the settings stay. Nothing is saved before the first message.",
    ),
)
