"""Personas: a named system prompt with sampling parameters and stop strings.

A persona is a TOML file in the folder `personas` of the user's configuration: `system`, any reply setting, a
`description`, and a table `variables` with defaults. `{name}` in the system prompt is a variable, `{{` and `}}` are
braces; braces around anything but a name are kept as they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quant.wording import ArgumentMessage
from qwchat.errors import UsageError
from qwchat.settings import config_files
from qwchat.settings.specs import SETTING_SPECS, closest_match, find_spec, suggestion
from qwchat.settings.value_types import SettingValue

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAX_NAME_LENGTH = 200  # leaves space for the file extension
_MAX_SHOWN = 60
_VARIABLE = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_-]*)\}")
SESSION_NAMES = ("system", "endpoint", "model")  # A persona may set these, besides the settings of a reply.
_ALLOWED_SPECS = {spec.name: spec for spec in SETTING_SPECS if spec.scope == "reply" or spec.name in SESSION_NAMES}


class MissingVariablesError(UsageError):
    """A persona lacks values of variables; the command line and the chat add the remedy."""

    def __init__(self, persona: str, missing: list[str]) -> None:
        super().__init__(f"persona {persona} needs {' and '.join(missing)}")
        self.persona, self.missing = persona, missing


@dataclass(frozen=True)
class Persona:
    """The contents of a persona file.

    Attributes:
        name: file name without `.toml`.
        path: the file.
        description: one line for lists.
        values: values of settings; the system prompt still contains its variables.
        defaults: default values of variables.
    """

    name: str
    path: Path
    description: str
    values: Mapping[str, SettingValue]
    defaults: Mapping[str, str]

    @property
    def variables(self) -> list[str]:
        """Variables of the system prompt, in order of occurrence."""
        found = (match[1] for match in _VARIABLE.finditer(str(self.values.get("system") or "")))
        return list(dict.fromkeys(name for name in found if name))

    def fill_variables(self, given: Mapping[str, str]) -> dict[str, SettingValue]:
        """Return the values with all variables filled in.

        Raises:
            MissingVariablesError: a variable has no value.
            UsageError: `given` has a value for an unknown variable.
        """
        variables = self.variables
        unknown = [name for name in given if name not in variables]
        if unknown:
            close = closest_match(unknown[0], variables)
            known = (
                f"did you mean {close}?"
                if close
                else "its variables are " + ", ".join(variables)
                if variables
                else "it has no variables"
            )
            raise UsageError(f"persona {self.name} has no variable {unknown[0]!r}: {known}")
        texts = {**self.defaults, **given}
        missing = [name for name in variables if name not in texts]
        if missing:
            raise MissingVariablesError(self.name, missing)
        values = dict(self.values)
        if isinstance(system := values.get("system"), str):
            values["system"] = _VARIABLE.sub(lambda match: texts[match[1]] if match[1] else match[0][0], system)
        return values


def folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of personas."""
    return config_files.user_config_folder(environment) / "personas"


def names(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names of all personas."""
    place = folder(environment)
    found = place.glob("*.toml") if place.is_dir() else []
    return sorted(path.stem for path in found if _NAME.fullmatch(path.stem) and path.is_file())


def path_of(name: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the file of a persona, which may not exist. Raises UsageError for an invalid name."""
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME_LENGTH:
        shown = repr(name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}…")
        raise UsageError(
            f"{shown} is not a valid persona name: use up to {_MAX_NAME_LENGTH} letters, digits, dots, dashes and "
            "underscores"
        )
    return folder(environment) / f"{name}.toml"


def read(name: str, environment: Mapping[str, str] = os.environ) -> Persona:
    """Return the persona called `name`. Raises UsageError if it does not exist or, with the line, is invalid."""
    path = path_of(name, environment)
    if not path.is_file():
        known = names(environment)
        close = closest_match(name, known)
        none = f"{path.parent} contains no personas (/save-persona creates one)"
        listed = "choose from " + ", ".join(known) if known else none
        raise UsageError(f"there is no persona {name!r}: {f'did you mean {close}?' if close else listed}")
    document = config_files.read(path)
    values: dict[str, SettingValue] = {}
    for key, value in document.values.items():
        if key in ("description", "variables"):
            continue
        if key not in _ALLOWED_SPECS:
            reason = f"a persona cannot set {key}" if key in _SETTING_NAMES else f"there is no setting {key!r}"
            meant = "" if key in _SETTING_NAMES else f": {suggestion(key)}"
            raise UsageError(f"{document.location(key)}: {reason}{meant}")
        try:
            values[key] = _ALLOWED_SPECS[key].check(value, key)
        except UsageError as error:
            raise UsageError(ArgumentMessage(f"{document.location(key)}: ", error)) from error
    persona = Persona(name, path, _description(document), values, _defaults(document))
    for variable in persona.defaults:
        if variable not in persona.variables:
            raise UsageError(
                f"{document.location('variables', variable)}: the system prompt does not use {{{variable}}}"
            )
    return persona


def write(name: str, values: Mapping[str, SettingValue], environment: Mapping[str, str] = os.environ) -> Path:
    """Save `values` of settings as a persona, replacing one of that name, and return its file. Raises UsageError."""
    import tomlkit

    from qwchat.settings import editing

    path = path_of(name, environment)
    document = tomlkit.document()
    for key, value in values.items():
        stored = find_spec(key).to_toml(value)
        if key == "system" and isinstance(stored, str) and value is not None:
            escaped = stored.replace("{", "{{").replace("}", "}}")
            document[key] = tomlkit.string(escaped, multiline="\n" in escaped)
        else:
            document[key] = stored
    editing.write(path, tomlkit.dumps(document))
    return path


def parse_assignments(words: list[str]) -> dict[str, str]:
    """Return the variables from words like `name=value`. Raises UsageError for any other word."""
    given = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise UsageError(f"give a variable as name=value, not {word!r}")
        given[name] = value
    return given


_SETTING_NAMES = {spec.name for spec in SETTING_SPECS}


def _description(document: config_files.ConfigDocument) -> str:
    value = document.values.get("description", "")
    if not isinstance(value, str):
        raise UsageError(f"{document.location('description')}: description must be a string")
    return " ".join(value.split())


def _defaults(document: config_files.ConfigDocument) -> dict[str, str]:
    table = document.values.get("variables", {})
    if not isinstance(table, dict):
        raise UsageError(f"{document.location('variables')}: variables must be a table such as [variables]")
    for name, value in table.items():
        if not isinstance(value, str):
            raise UsageError(f"{document.location('variables', name)}: {name} must be a string in quotes")
    return dict(table)
