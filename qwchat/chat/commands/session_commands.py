"""Commands about keeping what was said: files to take away, and the sessions of this machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qwchat.chat.commands.command import ChatCommand, CommandContext, Outcome, Show
from qwchat.chat.context_budget import standing
from qwchat.chat.display import Table
from qwchat.chat.path_completion import paths
from qwchat.chat.recap import UNANSWERED, last_exchange, length
from qwchat.chat.suggestions import Suggestion, fitting
from qwchat.conversation.export import FORMS, Form, Talk, exported, file_name, form_of
from qwchat.conversation.store import Entry, Store, check_name
from qwchat.conversation.title import clean
from qwchat.errors import SessionError, UsageError
from qwchat.text_files import expand_path, real_path, write_atomically

_LISTED = 15


def _save(desk: CommandContext, argument: str) -> Outcome:
    if not argument:
        raise UsageError("/save needs the name of a file, as in /save talk.md")
    path = expand_path(argument)
    return _written(desk, path, form_of(path))


def _export(desk: CommandContext, argument: str) -> Outcome:
    word, _, name = argument.partition(" ")
    form = next((form for form in FORMS if form == word.lower()), None)
    if form is None:
        raise UsageError(
            f"/export takes md, html or json, not {clean(word)!r}" if word else "/export md, html or json?"
        )
    return _written(desk, expand_path(name.strip()) if name.strip() else Path(file_name(_talk(desk), form)), form)


def _written(desk: CommandContext, path: Path, form: Form) -> Outcome:
    text = exported(_talk(desk), form)
    write_atomically(path, text, overwrite=real_path(path) in desk.written)
    desk.written.add(real_path(path))
    return Show(f"saved to {path}")


def _talk(desk: CommandContext) -> Talk:
    controls = desk.session.controls
    settings = controls.record() | {"seed": controls.seed}
    return Talk(desk.session.tree, desk.model_name, desk.saved.id or "", desk.saved.created, settings)


def _title(desk: CommandContext, argument: str) -> Outcome:
    tree = desk.session.tree
    if argument:
        title = clean(argument)
        if not title:
            raise UsageError("a title needs a letter or another character that can be seen")
        tree.set_title(title)
    return Show(f"the session is called {_talk(desk).title}" if argument else _talk(desk).title)


def _sessions(desk: CommandContext, argument: str) -> Outcome:
    entries = _store(desk).entries()
    wanted = argument.casefold()
    found = [entry for entry in entries if wanted in f"{entry.id} {entry.label}".casefold()]
    if not found:
        return Show(f"no session has {clean(argument)!r} in its title" if argument else "there are no sessions yet")
    rows = [(_mark(desk, entry), entry.id, entry.last_said, str(entry.messages), entry.label) for entry in found]
    shown = Table(("", "id", "last said", "messages", "title"), rows[:_LISTED], right=(3,))
    more = f"and {len(rows) - _LISTED} more: qwchat sessions list" if len(rows) > _LISTED else ""
    return Show(more, above=shown)


def _mark(desk: CommandContext, entry: Entry) -> str:
    return "*" if entry.id == desk.saved.id else ""


def _resume(desk: CommandContext, argument: str) -> Outcome:
    entry = _store(desk).find(argument) if argument else _chosen(desk)
    if entry is None:
        return Show("this session goes on")
    if entry.id == desk.saved.id:
        return Show("this session is the one that goes on here")
    desk.session.adopt(desk.saved.open(entry))
    notice = desk.saved.answers(desk.saved.model, desk.saved.fingerprint)
    lines = [f"{entry.id} ({entry.label}) goes on, {length(desk.session.tree)}", notice, standing(desk.session)]
    text = "\n".join(line for line in lines if line)
    if not (desk.session.tree.path() and desk.view.is_terminal):
        return Show(text)
    question, reply = last_exchange(desk.session.tree)
    return Show(text, question if reply is not None else f"{question}\n{UNANSWERED}", reply, reply=True)


def _chosen(desk: CommandContext) -> Entry | None:
    others = [entry for entry in _store(desk).entries() if entry.id != desk.saved.id]
    if desk.choose is None:
        raise UsageError("/resume needs a session, as in /resume seas: /sessions lists them")
    if not others:
        raise UsageError("there is no other session to resume")
    return desk.choose(others)


def _new(desk: CommandContext, argument: str) -> Outcome:
    system = desk.session.system
    desk.session.adopt(desk.saved.begin(name=_name(desk, argument)))
    desk.session.system = system
    return Show("a new session begins with the next message")


def _fork(desk: CommandContext, argument: str) -> Outcome:
    if not desk.session.tree.path():
        raise UsageError("nothing was said yet, so there is nothing to fork")
    desk.session.adopt(desk.saved.begin(desk.session.tree.fork(), _name(desk, argument)))
    session = desk.saved.name or desk.saved.id
    return Show("a copy of the conversation goes on here" + (f", as session {session}" if session else ""))


def _name(desk: CommandContext, argument: str) -> str:
    """A name that no session has yet; "" for none."""
    if argument and _store(desk).named(check_name(argument)) is not None:
        raise UsageError(f"there is a session {argument} already: /resume {argument} goes on with it")
    return argument


def _store(desk: CommandContext) -> Store:
    return desk.saved.store or Store()


def _known(desk: CommandContext, typed: str) -> Iterable[Suggestion]:
    try:
        entries = _store(desk).entries()
    except SessionError:
        return ()
    return fitting(typed, ((entry.name or entry.id, entry.title) for entry in entries if entry.id != desk.saved.id))


def _export_completion(desk: CommandContext, typed: str) -> Iterable[Suggestion]:
    form, blank, name = typed.partition(" ")
    if not blank:
        return fitting(form, ((form, "") for form in FORMS))
    return paths(name.lstrip())


COMMANDS: tuple[ChatCommand, ...] = (
    ChatCommand(
        "save",
        "FILE",
        "write the conversation as Markdown, or as .html or .json",
        _save,
        details="The conversation up to here, without alternatives. A file that this chat did not write is left alone.",
        complete=lambda _, typed: paths(typed),
    ),
    ChatCommand(
        "export",
        "md|html|json [FILE]",
        "write the conversation in that form",
        _export,
        details="Without FILE it goes into the current folder, under the conversation's title.",
        complete=_export_completion,
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
        complete=_known,
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
