"""The page of settings, from the table that flags, variables and files are read by."""

from __future__ import annotations

from docs.generator.markdown import code, escaped, sentence
from docs.generator.markdown import page as whole_page
from qwchat.settings.specs import SETTING_SPECS, SettingSpec
from qwchat.settings.value_types import Boolean

_INTRODUCTION = """\
A setting is a flag, an environment variable and a key of a TOML file; most can also be changed in the chat with
`/set NAME VALUE`. [Settings](../guide/settings.md) in the guide says which of them wins and what a project file may
set. `qwchat config show` prints every value in effect and where it comes from."""

_SCOPES = {
    "reply": ("Reply settings", "A change in the chat holds from the next reply on."),
    "engine": ("Engine settings", "A change in the chat continues with another engine, which takes over the KV cache."),
    "display": ("Display settings", "A change in the chat takes effect at once."),
    "session": ("Start settings", "They are read when the program starts and cannot be changed in the chat."),
}


def _default(spec: SettingSpec) -> str:
    if spec.none_word and spec.default in (None, ()):
        return f"default {code(spec.none_word)}"
    if spec.default is None:
        return "default: the model's, otherwise off"
    return f"default {code(spec.to_text(spec.default))}"


def _flag(spec: SettingSpec) -> str:
    flag = f"{spec.short_flag}, {spec.flag}" if spec.short_flag else spec.flag
    boolean = isinstance(spec.value_type, Boolean)
    return f"{flag}, {spec.flag_for(False)}" if boolean else f"{flag} {spec.value_type.metavar}"


def _section(spec: SettingSpec) -> str:
    project = "" if spec.project_may_set else " · not from a project file"
    facts = f"{code(_flag(spec))} · {code(spec.variable)} · takes {escaped(spec.accepts)} · {_default(spec)}{project}"
    return f"### {spec.name}\n\n{sentence(spec.help)}\n\n{facts}\n{{ .setting-facts }}"


def page() -> str:
    """Return the page."""
    parts = [_INTRODUCTION]
    for scope, (title, effect) in _SCOPES.items():
        parts += [f"## {title}", effect, *(_section(spec) for spec in SETTING_SPECS if spec.scope == scope)]
    return whole_page("Settings", *parts)
