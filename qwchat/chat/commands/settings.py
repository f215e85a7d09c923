"""Commands about how replies are made: the system prompt and the settings."""

from __future__ import annotations

from collections.abc import Iterable

from qwchat.chat.commands.base import Command, Desk, Outcome, Show
from qwchat.chat.controls import REPLY_KNOBS
from qwchat.chat.suggestions import Suggestion, fitting
from qwchat.chat.view.table import table
from qwchat.settings.knobs import knob


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
    controls = session.controls
    if not name:
        rows = [(known.name, controls.shown(known.name), controls.origin(known.name)) for known in REPLY_KNOBS]
        return Show(table(("setting", "value", "from"), rows))
    known = knob(name, scopes=("reply",))
    if value.strip():
        session.controls = controls.changed(known.name, value.strip(), session.defaults)
        return Show(f"{known.name} {session.controls.shown(known.name)}")
    now = f"{known.name} {controls.shown(known.name)} (from {controls.origin(known.name)})"
    return Show(f"{now}\n{known.help}. It takes {known.limits}, or default.")


def _settings(desk: Desk, typed: str) -> Iterable[Suggestion]:
    name, blank, value = typed.partition(" ")
    if not blank:
        return fitting(name, ((known.name, desk.session.controls.shown(known.name)) for known in REPLY_KNOBS))
    known = next((known for known in REPLY_KNOBS if known.name == name), None)
    if known is None:
        return ()
    return fitting(value.lstrip(), [*((word, "") for word in known.words), ("default", known.limits)])


COMMANDS: tuple[Command, ...] = (
    Command("system", "TEXT", "show or set the system prompt (none: without)", _system),
    Command("set", "NAME VALUE", "show or change a setting (default: back to the start)", _set, complete=_settings),
)
