"""Commands about how replies are made: the system prompt and the settings."""

from __future__ import annotations

from collections.abc import Iterable

from qwchat.chat import controls
from qwchat.chat.commands.base import Command, Desk, Outcome, Show
from qwchat.chat.suggestions import Suggestion, fitting


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


def _settings(desk: Desk, typed: str) -> Iterable[Suggestion]:
    return fitting(typed, ((name, desk.session.controls.shown(name)) for name in controls.NAMES))


COMMANDS: tuple[Command, ...] = (
    Command("system", "TEXT", "show or set the system prompt (none: without)", _system),
    Command("set", "NAME VALUE", "show or change a setting (default: back to the start)", _set, complete=_settings),
)
