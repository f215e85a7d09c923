"""Commands for the system prompt, the settings and the personas."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from qwchat.chat.commands.command import ChatCommand, CommandContext, Outcome, Show
from qwchat.chat.display import Table
from qwchat.chat.formatting import one_line, token_count
from qwchat.chat.suggestions import Suggestion, match_suggestions
from qwchat.errors import UsageError
from qwchat.settings.specs import find_spec
from qwchat.text_files import real_path


def _system(context: CommandContext, argument: str) -> Outcome:
    session = context.session
    if not argument:
        return Show("no system prompt is set") if session.system is None else Show(message=session.system)
    before = session.system
    session.system = None if argument == "none" else argument
    if session.system is None:
        return Show("removed the system prompt" + _prefill_note(context, before))
    changed = "replaced" if before is not None else "set"
    return Show(f"{changed} the system prompt{_prefill_note(context, before)}")


def _prefill_note(context: CommandContext, before: str | None) -> str:
    """Return what changing the system prompt from `before` costs, as the end of a sentence."""
    session = context.session
    if session.system == before or not session.turns:
        return ""
    tokens = session.model.reevaluated_tokens(session.render(session.messages))
    return f"; {token_count(tokens)} will be evaluated again" if tokens else ""


def _set(context: CommandContext, argument: str) -> Outcome:
    settings = context.settings
    name, _, value = argument.partition(" ")
    if not name:
        rows = [(spec.name, one_line(settings.display_value(spec)), settings.origin(spec)) for spec in settings.specs]
        return Show(table=Table(("setting", "value", "from"), rows))
    if value.strip():
        return Show(settings.change(name, value.strip()))
    spec = settings.find(name)
    now = f"{spec.name} {settings.display_value(spec)} ({settings.origin(spec)})"
    return Show(f"{now}\n{spec.help}. Values: {spec.accepts}, or default.")


def _complete_setting(context: CommandContext, typed: str) -> Iterable[Suggestion]:
    settings = context.settings
    name, blank, value = typed.partition(" ")
    if not blank:
        return match_suggestions(name, ((spec.name, settings.display_value(spec)) for spec in settings.specs))
    spec = next((spec for spec in settings.specs if spec.name == name), None)
    if spec is None:
        return ()
    return match_suggestions(value.lstrip(), [*((word, "") for word in spec.completions), ("default", spec.accepts)])


def _as(context: CommandContext, argument: str) -> Outcome:
    persona, before = context.persona, context.session.system
    try:
        name, *variables = shlex.split(argument) or [""]
    except ValueError as error:
        raise UsageError(f"the closing quote is missing in {argument!r}") from error
    if not name:
        return _list_personas(context)
    if name == "none":
        if persona.active is None:
            return Show("no persona is active")
        persona.remove()
        return Show(f"removed the persona{_prefill_note(context, before)}")
    values = persona.apply(name, variables)
    place = " ".join(str(values.pop(key)) for key in ("endpoint", "model") if values.get(key) is not None)
    parts = ["system prompt" if key == "system" else f"{key} {find_spec(key).to_text(values[key])}" for key in values]
    text = f"applied persona {name}: {', '.join(parts) or 'no settings'}{_prefill_note(context, before)}"
    return Show(text, hint=f"the model stays; that of the persona: /model {place}" if place else "")


def _list_personas(context: CommandContext) -> Show:
    persona = context.persona
    rows = [
        (name, "active" if name == persona.active else "", one_line(text, 100)) for name, text in persona.descriptions()
    ]
    if not rows:
        return Show(
            "there are no personas yet: save the system prompt and settings of this chat with /save-persona NAME, "
            f"or create NAME.toml in {persona.folder}"
        )
    return Show(table=Table(("persona", "", "description"), rows))


def _complete_persona(context: CommandContext, typed: str) -> Iterable[Suggestion]:
    name, blank, rest = typed.partition(" ")
    if not blank:
        return match_suggestions(name, [*context.persona.descriptions(), ("none", "")])
    *given, last = rest.split(" ")
    names = {word.partition("=")[0] for word in given}
    return match_suggestions(last, [(f"{each}=", "") for each in context.persona.variables(name) if each not in names])


def _save_persona(context: CommandContext, argument: str) -> Outcome:
    if not argument:
        raise UsageError("/save-persona needs a name, for example /save-persona poet")
    mine = real_path(context.persona.folder / f"{argument}.toml") in context.written
    path = context.persona.save(argument, overwrite=mine)
    context.written.add(real_path(path))
    return Show(f"saved to {path}: /as {argument} applies it, in other chats too")


COMMANDS: tuple[ChatCommand, ...] = (
    ChatCommand(
        "system",
        "TEXT",
        "show or change the system prompt (none: remove it)",
        _system,
        details="The whole conversation is evaluated again, because it starts with the system prompt.",
    ),
    ChatCommand(
        "set",
        "NAME VALUE",
        "show or change a setting (default: as at the start)",
        _set,
        details="Without arguments, it lists every setting and where its value comes from. ctx, threads and kv change\n"
        "the engine, which keeps the cached tokens if they fit, unless the cache format changes.",
        complete=_complete_setting,
    ),
    ChatCommand(
        "as",
        "NAME",
        "apply a persona (none: remove it), or list them",
        _as,
        details="Variables of the persona follow its name: /as poet place=Rome year=1799.",
        complete=_complete_persona,
    ),
    ChatCommand("save-persona", "NAME", "save the system prompt and changed settings as a persona", _save_persona),
)
