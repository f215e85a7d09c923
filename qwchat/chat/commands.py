"""The commands of the chat: ``/name argument``. They change the session and return what is to be shown."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qwchat.chat import controls, transcript
from qwchat.chat.session import Session
from qwchat.errors import UsageError

_COMMAND = re.compile(r"/([A-Za-z][A-Za-z-]*)(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Show:
    """Show ``text`` and go on."""

    text: str


@dataclass(frozen=True)
class Retry:
    """Stream another reply to the last question."""


@dataclass(frozen=True)
class Quit:
    """Leave the chat."""


Outcome = Show | Retry | Quit


@dataclass
class Desk:
    """What commands work on: the session, the model's name for people, and the files this chat has written."""

    session: Session
    model_name: str
    written: set[Path] = field(default_factory=set)


@dataclass(frozen=True)
class Command:
    """One command: its name without the slash, its argument as shown in the help, what it does."""

    name: str
    argument: str
    summary: str
    run: Callable[[Desk, str], Outcome]


def parse(text: str) -> tuple[Command, str] | None:
    """The command that ``text`` gives and its argument; None where ``text`` is a message.

    ``//`` begins a message with a slash; so does ``/`` followed by anything but a word (``/usr/bin`` is a message), and
    an unknown word in a text of several lines. Raises UsageError for an unknown command on a line of its own.
    """
    match = _COMMAND.fullmatch(text.strip())
    if match is None:
        return None
    name, argument = match[1].lower(), (match[2] or "").strip()
    for command in COMMANDS:
        if command.name == name:
            return command, argument
    if "\n" in text.strip():
        return None
    close = difflib.get_close_matches(name, [command.name for command in COMMANDS], n=1)
    hint = f"did you mean /{close[0]}?" if close else "/help lists them"
    raise UsageError(f"there is no command /{match[1]}: {hint} (begin with // to send it as a message)")


def message_text(text: str) -> str:
    """The message that a typed line stands for: without the first of two slashes."""
    return text[1:] if text.startswith("//") else text


def _help(desk: Desk, argument: str) -> Outcome:
    if argument:
        wanted = parse("/" + argument.lstrip("/"))
        if wanted is not None:
            return Show(_usage(wanted[0]) + "  " + wanted[0].summary)
    width = max(len(name) for name in (*map(_usage, COMMANDS), *(keys for keys, _ in KEYS)))
    lines = [f"{_usage(command):<{width}}  {command.summary}" for command in COMMANDS]
    lines += ["", "Settings: " + ", ".join(controls.NAMES)]
    lines += [f"{keys:<{width}}  {effect}" for keys, effect in KEYS]
    return Show("\n".join(lines))


def _usage(command: Command) -> str:
    return f"/{command.name} {command.argument}".rstrip()


def _clear(desk: Desk, argument: str) -> Outcome:
    desk.session.clear()
    return Show("the conversation is forgotten")


def _system(desk: Desk, argument: str) -> Outcome:
    session = desk.session
    if not argument:
        return Show("no system prompt is set" if session.system is None else session.system)
    if argument == "none":
        session.system = None
        return Show("no system prompt from the next message on")
    session.system = argument
    return Show("this system prompt holds from the next message on")


def _set(desk: Desk, argument: str) -> Outcome:
    session = desk.session
    name, _, value = argument.partition(" ")
    if not name:
        width = max(len(known) for known in controls.NAMES)
        return Show("\n".join(f"{known:<{width}}  {session.controls.shown(known)}" for known in controls.NAMES))
    if value.strip():
        session.controls = session.controls.changed(name, value.strip(), session.defaults)
    return Show(f"{name} {session.controls.shown(name)}")


def _retry(desk: Desk, argument: str) -> Outcome:
    return Retry()


def _save(desk: Desk, argument: str) -> Outcome:
    if not argument:
        raise UsageError("/save needs the name of a file, as in /save talk.md")
    path = Path(argument).expanduser()
    transcript.save(desk.session, desk.model_name, path, overwrite=path.resolve() in desk.written)
    desk.written.add(path.resolve())
    return Show(f"saved to {path}")


def _quit(desk: Desk, argument: str) -> Outcome:
    return Quit()


COMMANDS: tuple[Command, ...] = (
    Command("help", "", "this list", _help),
    Command("clear", "", "forget the conversation", _clear),
    Command("system", "TEXT", "show or set the system prompt (none: without)", _system),
    Command("set", "NAME VALUE", "show or change a setting (default: back to the start)", _set),
    Command("retry", "", "answer the last question again", _retry),
    Command("save", "FILE", "write the conversation as Markdown, or as .json", _save),
    Command("quit", "", "leave", _quit),
)

KEYS: tuple[tuple[str, str], ...] = (
    ("Enter", "send"),
    ("Alt-Enter, Ctrl-J", "break the line"),
    ("Ctrl-C", "stop a reply and keep what was said"),
    ("Ctrl-D", "leave"),
)
