"""The session that the command line selects: `--continue`, `--resume`, `--session`, `--no-save`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TextIO

from qwchat import models_folder
from qwchat.chat import continued_settings
from qwchat.chat.context_budget import unsent_notice
from qwchat.chat.kv_snapshots import KVSnapshots
from qwchat.chat.recap import UNANSWERED, conversation_length, last_exchange
from qwchat.chat.reply_settings import REPLY_SETTING_NAMES, ReplySettings
from qwchat.chat.session import Session
from qwchat.chat.session_recorder import ChooseSession, SessionRecorder
from qwchat.chat.view.reply import ReplyView
from qwchat.chat.view.screen import Screen
from qwchat.chat.view.table import format_table
from qwchat.cli.open_endpoint import configured_endpoint
from qwchat.cli.options import Flags, ReplyOptions
from qwchat.cli.reply_models import ReplyModel
from qwchat.conversation.session_store import SessionEntry, SessionStore, check_name, no_session_error
from qwchat.errors import SessionError, UsageError
from qwchat.markdown.styles import Styling

_SINGLE_REPLY_SETTINGS = ("choices", "regex", "json-schema")
_MAX_LISTED = 12  # sessions, which fit on any screen


def open_recorder(
    options: ReplyOptions, screen: Screen, *, chat: bool, choose: ChooseSession | None = None
) -> SessionRecorder | None:
    """Open the session that the options select, or start a new one. Return None if the user chooses none.

    Args:
        options: options of the command line.
        screen: for notices.
        chat: True for a chat, which is saved by default. A single reply is saved only in a named session.
        choose: lets the user choose a session; None if there is no terminal.

    Raises:
        UsageError: the options contradict each other, or there is no such session.
        SessionError: the session cannot be opened.
    """
    _check_options(options)
    store, entry = SessionStore(), None
    name = options.session or ""
    if options.continue_:
        entry = store.latest()
    elif options.resume:
        entry = store.find(options.resume)
    elif options.resume is not None:
        entry = _choose_session(store, choose)
        if entry is None:
            return None
    elif options.session is not None:
        entry = store.named(check_name(name))
    keep = options.settings["save"] and (chat or entry is not None or bool(name))
    recorder = SessionRecorder(store if keep else None, screen.error)
    if entry is None:
        recorder.start(name=name)
    else:
        recorder.open(entry)
    return recorder


def with_session_model(recorder: SessionRecorder, options: ReplyOptions, screen: Screen) -> ReplyOptions:
    """Return `options` with the model of the session, unless the command line names a model."""
    name = recorder.last_model
    if not name or "model" in options.flags or "endpoint" in options.flags:
        return options
    try:
        # Only names of local models are accepted, so that a session file cannot name a path.
        is_available = name in [model.name for model in models_folder.available()]
    except OSError:
        is_available = False
    if is_available:
        here = {"endpoint": "none"} if options.settings["endpoint"] is not None else {}
        return replace(options, flags=Flags(options.flags, model=name, **here))
    model, at, host = name.rpartition(" at ")
    if not at:
        screen.notice(f"the session used the model {name}, which is not available here (see qwchat list)")
        return options
    # A session file names a server, but only the settings say which one to ask.
    configured = configured_endpoint(options.settings)
    if configured is None or configured.name != host:
        screen.notice(f"the session used {model} on the server {host}: --endpoint URL continues there")
        return options
    return replace(options, flags=Flags(options.flags, model=model, endpoint=configured.url))


def create_session(
    recorder: SessionRecorder,
    options: ReplyOptions,
    reply_settings: ReplySettings,
    model: ReplyModel,
    screen: Screen,
) -> Session:
    """Return the conversation of `recorder`, with `model` to reply.

    A continued session keeps its system prompt, unless the command line sets one, directly or with a persona.
    """
    settings = options.settings
    given = "system" in options.flags or ("as" in options.flags and settings.origin("system").startswith("persona "))
    opened = model.opened
    notice = recorder.set_model(opened.name, opened.fingerprint)
    if notice is not None:
        screen.notice(notice)
    session = Session(
        opened.model,
        reply_settings,
        tree=recorder.tree,
        fingerprint=opened.fingerprint,
        model_name=opened.name,
    )
    session.thinking = settings["think"] != "off"
    if "think-budget" in options.flags and reply_settings["think-budget"] and not model.thinks:
        screen.notice(f"{opened.name} does not think, so --think-budget has no effect")
    if not recorder.tree.nodes or given:
        session.system = settings["system"]
    if (left_out := unsent_notice(session)) is not None:
        screen.notice(left_out)
    return session


def connect_snapshots(
    recorder: SessionRecorder, options: ReplyOptions, model: ReplyModel, screen: Screen
) -> KVSnapshots:
    """Restore the saved KV cache of a session when it is opened, and save it again when it is left."""
    settings = options.settings
    snapshots = KVSnapshots(model.snapshot_model, settings["snapshot"], settings["snapshot-limit"] << 20)

    def notify(act: Callable[[Path], str | None], folder: Path) -> None:
        if notice := act(folder):
            screen.notice(notice)

    recorder.on_fork.append(snapshots.mark_unsaved)
    recorder.on_open.append(partial(notify, snapshots.restore))
    recorder.on_flush.append(partial(notify, snapshots.save_after_turn))
    recorder.on_close.append(partial(notify, snapshots.save_or_remove))
    if recorder.source_folder is not None:
        notify(snapshots.restore, recorder.source_folder)
    return snapshots


def continued_reply_settings(
    recorder: SessionRecorder, options: ReplyOptions, reply_settings: ReplySettings, screen: Screen
) -> ReplySettings:
    """Return `reply_settings` with the settings of the session's last reply, finished or not.

    Flags take precedence. Constraints and settings for a single reply are not continued.
    """
    path = reversed(recorder.tree.path())
    found = (node.settings for node in path if node.settings and node.note != continued_settings.OWN_SETTINGS_NOTE)
    recorded = continued_settings.settings_to_continue(next(found, None), reply_settings, reply_settings)
    changed = []
    for name in REPLY_SETTING_NAMES:
        given = name in options.flags or "as" in options.flags
        if given or name in _SINGLE_REPLY_SETTINGS or recorded[name] == reply_settings[name]:
            continue
        reply_settings = reply_settings.with_value(name, recorded[name], "the session")
        changed.append(f"{name} {reply_settings.display_value(name)}")
    if changed:
        screen.notice(f"using the settings of the session: {', '.join(changed)}")
    return reply_settings


def show_last_exchange(recorder: SessionRecorder, view: ReplyView, screen: Screen, *, watched: bool) -> None:
    """Report which session continues; on a terminal, show its last question and reply."""
    if not recorder.tree.nodes:
        return
    called = f"session {recorder.id}" if recorder.id else "a session"
    screen.notice(f"continuing {called}, {conversation_length(recorder.tree)}: {recorder.title}")
    if not (watched and recorder.tree.path()):
        return
    question, reply = last_exchange(recorder.tree)
    screen.hint(question)
    if reply is None:
        screen.hint(UNANSWERED)
        return
    view.write(reply)
    view.end()
    screen.blank_line()


def resume_command(recorder: SessionRecorder) -> str | None:
    """Return the command that continues the open session; None if it is not saved."""
    if recorder.id is None or recorder.store is None:
        return None
    if recorder.name:
        return f"qwchat --resume {shlex.quote(recorder.name)}"
    try:
        is_latest = recorder.store.latest().id == recorder.id
    except (UsageError, SessionError, OSError):
        is_latest = False
    return "qwchat -c" if is_latest else f"qwchat --resume {recorder.id}"


def interactive_chooser(terminal: TextIO, styling: Styling) -> ChooseSession:
    """Return a chooser with a list that is filtered while the user types."""

    def choose(entries: Sequence[SessionEntry]) -> SessionEntry | None:
        from qwchat.chat.editor.picker import pick

        # The title comes first, for narrow windows.
        return pick(entries, lambda entry: f"{entry.label} · {entry.changed_local}", terminal=terminal, styling=styling)

    return choose


def numbered_list_chooser(read: Callable[[], str], screen: Screen) -> ChooseSession:
    """Return a chooser with a numbered list and a text search, for simple terminals."""

    def choose(entries: Sequence[SessionEntry]) -> SessionEntry | None:
        found = list(entries)
        while True:
            rows = [
                (str(number), entry.changed_local, entry.label) for number, entry in enumerate(found[:_MAX_LISTED], 1)
            ]
            screen.answer(format_table(("", "last used", "session"), rows, right=(0,)))
            if len(found) > _MAX_LISTED:
                screen.hint(f"and {len(found) - _MAX_LISTED} more")
            screen.hint("type a number to choose, a word to search, Ctrl-D to leave")
            try:
                typed = read().strip()
            except EOFError:
                return None
            if typed.isdecimal() and 1 <= int(typed) <= len(found[:_MAX_LISTED]):
                return found[int(typed) - 1]
            found = [entry for entry in entries if typed.casefold() in f"{entry.id} {entry.label}".casefold()]
            if not found:
                screen.hint(f"no session has {typed!r} in its title")
                found = list(entries)

    return choose


def _check_options(options: ReplyOptions) -> None:
    given_options = {
        "--continue": options.continue_,
        "--resume": options.resume is not None,
        "--session": options.session is not None,
    }
    given = [flag for flag, is_given in given_options.items() if is_given]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other: choose one")
    if given and options.count != 1:
        raise UsageError(f"--count prints several replies, but {given[0]} continues with one: remove one of them")


def _choose_session(store: SessionStore, choose: ChooseSession | None) -> SessionEntry | None:
    entries = store.entries()
    if choose is None:
        raise UsageError("--resume needs a name when there is no terminal: qwchat sessions list shows the names")
    if not entries:
        raise no_session_error()
    return choose(entries)
