"""Commands about how replies are made: the system prompt, the settings and the personas."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from qwchat.chat.commands.command import ChatCommand, CommandContext, Outcome, Show
from qwchat.chat.display import Table
from qwchat.chat.formatting import one_line, token_count
from qwchat.chat.suggestions import Suggestion, fitting
from qwchat.errors import UsageError
from qwchat.settings.specs import find_spec
from qwchat.text_files import real_path


def _system(desk: CommandContext, argument: str) -> Outcome:
    session = desk.session
    if not argument:
        return Show("no system prompt is set") if session.system is None else Show(said=session.system)
    before = session.system
    session.system = None if argument == "none" else argument
    if session.system is None:
        return Show("no system prompt from the next message on" + _reading(desk, before))
    replaced = "takes the place of the old one" if before is not None else "holds"
    return Show(f"this system prompt {replaced} from the next message on{_reading(desk, before)}")


def _reading(desk: CommandContext, before: str | None) -> str:
    """What a system prompt that is not `before` any more costs, as the end of a sentence."""
    session = desk.session
    if session.system == before or not session.turns:
        return ""
    tokens = session.model.reevaluated_tokens(session.model.prompt(session.messages))
    return f"; {token_count(tokens)} will be read again" if tokens else ""


def _set(desk: CommandContext, argument: str) -> Outcome:
    panel = desk.panel
    name, _, value = argument.partition(" ")
    if not name:
        rows = [(known.name, one_line(panel.shown(known)), panel.origin(known)) for known in panel.specs]
        return Show(above=Table(("setting", "value", "from"), rows))
    if value.strip():
        return Show(panel.change(name, value.strip()))
    known = panel.known(name)
    now = f"{known.name} {panel.shown(known)} (from {panel.origin(known)})"
    return Show(f"{now}\n{known.help}. It takes {known.accepts}, or default.")


def _settings(desk: CommandContext, typed: str) -> Iterable[Suggestion]:
    panel = desk.panel
    name, blank, value = typed.partition(" ")
    if not blank:
        return fitting(name, ((known.name, panel.shown(known)) for known in panel.specs))
    known = next((known for known in panel.specs if known.name == name), None)
    if known is None:
        return ()
    return fitting(value.lstrip(), [*((word, "") for word in known.completions), ("default", known.accepts)])


def _as(desk: CommandContext, argument: str) -> Outcome:
    wardrobe, before = desk.wardrobe, desk.session.system
    try:
        name, *variables = shlex.split(argument) or [""]
    except ValueError as error:
        raise UsageError(f"a quotation mark is missing in {argument!r}") from error
    if not name:
        return _personas(desk)
    if name == "none":
        if wardrobe.worn is None:
            return Show("no persona is in use")
        wardrobe.take_off()
        return Show(f"no persona from the next message on{_reading(desk, before)}")
    values = wardrobe.put_on(name, variables)
    parts = [
        "the system prompt" if key == "system" else f"{key} {find_spec(key).to_text(values[key])}" for key in values
    ]
    return Show(f"persona {name} sets {', '.join(parts) or 'nothing'}{_reading(desk, before)}")


def _personas(desk: CommandContext) -> Show:
    wardrobe = desk.wardrobe
    rows = [
        (name, "in use" if name == wardrobe.worn else "", one_line(text, 100)) for name, text in wardrobe.described()
    ]
    if not rows:
        return Show(
            "there are no personas yet: /save-persona NAME makes one of this chat's system prompt and settings, "
            f"and so does a file NAME.toml in {wardrobe.folder}"
        )
    return Show(above=Table(("persona", "", "description"), rows))


def _wearable(desk: CommandContext, typed: str) -> Iterable[Suggestion]:
    name, blank, rest = typed.partition(" ")
    if not blank:
        return fitting(name, [*desk.wardrobe.described(), ("none", "")])
    *given, last = rest.split(" ")
    names = {word.partition("=")[0] for word in given}
    return fitting(last, [(f"{each}=", "") for each in desk.wardrobe.variables(name) if each not in names])


def _save_persona(desk: CommandContext, argument: str) -> Outcome:
    if not argument:
        raise UsageError("/save-persona needs a name, as in /save-persona poet")
    mine = real_path(desk.wardrobe.folder / f"{argument}.toml") in desk.written
    path = desk.wardrobe.keep(argument, overwrite=mine)
    desk.written.add(real_path(path))
    return Show(f"kept as {path}: /as {argument} uses it, in other chats too")


COMMANDS: tuple[ChatCommand, ...] = (
    ChatCommand(
        "system",
        "TEXT",
        "show or set the system prompt (none: without)",
        _system,
        details="The new prompt takes the place of the old one, so the conversation is read again from the beginning.",
    ),
    ChatCommand(
        "set",
        "NAME VALUE",
        "show or change a setting (default: back to the start)",
        _set,
        details="Alone it lists every setting and where its value came from. ctx, threads and kv change the engine: "
        "what was read is kept where it has room, unless the kind of cache changes.",
        complete=_settings,
    ),
    ChatCommand(
        "as",
        "NAME",
        "take a persona (none: without), or list them",
        _as,
        details="Variables of the persona follow its name: /as poet place=Rome year=1799.",
        complete=_wearable,
    ),
    ChatCommand("save-persona", "NAME", "keep the system prompt and what was set as a persona", _save_persona),
)
