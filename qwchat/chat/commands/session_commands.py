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
        raise UsageError("/save needs a file name, for example /save talk.md")
    path = expand_path(argument)
    return _write_transcript(context, path, format_of(path))


def _export(context: CommandContext, argument: str) -> Outcome:
    word, _, name = argument.partition(" ")
    form = next((form for form in EXPORT_FORMATS if form == word.lower()), None)
    if form is None:
        raise UsageError(
            f"/export takes md, html or json, not {clean_line(word)!r}"
            if word
            else "/export needs a format: md, html or json"
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
            raise UsageError("a title needs at least one visible character")
        tree.set_title(title)
    return Show(f"the title is now: {_transcript(context).title}" if argument else _transcript(context).title)


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
    shown = Table(("", "id", "last used", "messages", "title"), rows[:_MAX_SESSIONS_LISTED], right=(3,))
    more = (
        f"and {len(rows) - _MAX_SESSIONS_LISTED} more: qwchat sessions list shows all"
        if len(rows) > _MAX_SESSIONS_LISTED
        else ""
    )
    return Show(more, table=shown)


def _current_mark(context: CommandContext, entry: SessionEntry) -> str:
    return "*" if entry.id == context.recorder.id else ""


def _resume(context: CommandContext, argument: str) -> Outcome:
    entry = _store(context).find(argument) if argument else _choose_session(context)
    if entry is None:
        return Show("no session chosen; this one continues")
    if entry.id == context.recorder.id:
        return Show("this session is already open here")
    context.session.switch_tree(context.recorder.open(entry))
    notice = context.recorder.set_model(context.recorder.model, context.recorder.fingerprint)
    lines = [
        f"resumed {entry.id} ({entry.label}), {conversation_length(context.session.tree)}",
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
        raise UsageError("/resume needs a session, for example /resume seas: /sessions lists them")
    if not others:
        raise UsageError("there is no other session to resume")
    return context.choose(others)


def _new(context: CommandContext, argument: str) -> Outcome:
    system = context.session.system
    context.session.switch_tree(context.recorder.start(name=_check_new_name(context, argument)))
    context.session.system = system
    return Show("the next message starts a new session")


def _fork(context: CommandContext, argument: str) -> Outcome:
    if not context.session.tree.path():
        raise UsageError("the conversation is empty, so there is nothing to fork")
    context.session.switch_tree(context.recorder.start(context.session.tree.fork(), _check_new_name(context, argument)))
    session = context.recorder.name or context.recorder.id
    return Show("continuing in a copy of the conversation" + (f", session {session}" if session else ""))


def _check_new_name(context: CommandContext, argument: str) -> str:
    """Return `argument` after checking that no session has that name; "" stands for no name."""
    if argument and _store(context).named(check_name(argument)) is not None:
        raise UsageError(f"session {argument} already exists: /resume {argument} continues it")
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
        "write the conversation to a file (.md, .html or .json)",
        _save,
        details="It writes the conversation without alternatives, and overwrites only files that this chat wrote.",
        complete=lambda _, typed: complete_path(typed),
    ),
    ChatCommand(
        "export",
        "md|html|json [FILE]",
        "write the conversation in that format",
        _export,
        details="Without FILE, it is written to the current folder and named after its title.",
        complete=_complete_export,
    ),
    ChatCommand("title", "[TEXT]", "show or change the title of the session", _title),
    ChatCommand("sessions", "[TEXT]", "list saved sessions, or those with TEXT in their title", _sessions),
    ChatCommand(
        "resume",
        "[SESSION]",
        "leave this session and resume another",
        _resume,
        details="SESSION is a name, an id or its beginning, or part of a title. Without it, you choose from a list.\n"
        "The model and the settings stay the same.",
        complete=_complete_session,
    ),
    ChatCommand(
        "fork",
        "[NAME]",
        "continue in a new session with a copy of the conversation",
        _fork,
        details="The old session keeps all its turns and alternatives.",
    ),
    ChatCommand(
        "new",
        "[NAME]",
        "leave this session and start a new one",
        _new,
        details="The system prompt and the settings stay the same. Nothing is saved before the first message.",
    ),
)
