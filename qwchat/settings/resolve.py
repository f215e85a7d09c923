"""Combine flags, variables and files into one value per setting, with its origin.

Precedence, highest first: flags, environment variables, the project file, the user's file, the model's
generation_config.json, built-in defaults. A persona ranks right below the source that names it. Named with `--as`, it
yields to other flags only; named in the user's file, it yields to that file too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quant.wording import Argument, ArgumentMessage, SuggestedArgument
from qwchat.errors import UsageError
from qwchat.settings import config_files, personas
from qwchat.settings.specs import SETTING_SPECS, find_spec
from qwchat.settings.value_types import SettingValue

BUILT_IN = "built in"

FlagValue = str | bool | Sequence[str]
"""Value from the command line: a string, a boolean or several strings."""


@dataclass(frozen=True)
class SourcedValue:
    """A value and its origin for the user: "--temp", "QWCHAT_TEMP", the path of a file."""

    value: SettingValue
    origin: str


@dataclass(frozen=True)
class Settings:
    """One value per setting.

    Attributes:
        given: values that were set in any source, by name.
        notices: remarks about the files for the user.
        project: the project file, if any of these values comes from it.
    """

    given: Mapping[str, SourcedValue] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    project: Path | None = None

    def __getitem__(self, name: str) -> Any:
        """Return the value of the setting `name`. Raises KeyError if there is no such setting."""
        found = self.given.get(name)
        return _DEFAULTS[name] if found is None else found.value

    def __contains__(self, name: str) -> bool:
        """Return True if `name` was set in any source."""
        return name in self.given

    def origin(self, name: str) -> str:
        """Return the origin of the value of `name`."""
        found = self.given.get(name)
        return BUILT_IN if found is None else found.origin


_DEFAULTS = {spec.name: spec.default for spec in SETTING_SPECS}


def resolve(
    flags: Mapping[str, FlagValue] | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    folder: Path | None = None,
    use_files: bool = True,
    variables: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings in effect.

    Args:
        flags: values from the command line, by name of the setting.
        environment: environment variables.
        folder: where to look for a project file; None is the working folder.
        use_files: read configuration files; a persona that is named is read in any case.
        variables: variables of the persona.

    Raises:
        UsageError: a value is invalid; the message names the argument, the variable, or the file and line.
    """
    project = config_files.find_project_file(folder) if use_files else config_files.ProjectFile()
    user_file, user_notices = _user_config(environment) if use_files else (None, ())
    given: dict[str, SourcedValue] = {}
    for source_values in _sources(flags or {}, environment, project.path, user_file):
        names_persona = "as" not in given and "as" in source_values
        for name, found in source_values.items():
            given.setdefault(name, found)
        if names_persona and given["as"].value is not None:
            persona = personas.read(str(given["as"].value), environment)
            by_project = given["as"].origin == str(project.path)
            for name, value in persona.fill_variables(variables or {}).items():
                if not by_project or find_spec(name).project_may_set:
                    given.setdefault(name, SourcedValue(value, f"persona {persona.name}"))
    if variables and ("as" not in given or given["as"].value is None):
        raise UsageError(
            ArgumentMessage(
                "there is no persona for ", Argument("variables"), ": choose one with ", SuggestedArgument("as", ...)
            )
        )
    project_counts = any(found.origin == str(project.path) for found in given.values())
    return Settings(given, (*project.notices, *user_notices), project.path if project_counts else None)


def _sources(
    flags: Mapping[str, FlagValue],
    environment: Mapping[str, str],
    project: Path | None,
    user_file: Path | None,
) -> Iterator[dict[str, SourcedValue]]:
    """Yield the values of each source, highest precedence first."""
    yield {
        name: SourcedValue(_from_flag(name, flag_value), find_spec(name).flag_for(flag_value))
        for name, flag_value in flags.items()
    }
    yield _from_environment(environment)
    if project is not None:
        yield _from_file(project, project=True)
    if user_file is not None:
        yield _from_file(user_file, project=False)


def _user_config(environment: Mapping[str, str]) -> tuple[Path | None, tuple[str, ...]]:
    """Return the user's file, if there is one, and notices about it.

    HOME may belong to another user (`sudo -u`, a service). An inaccessible folder must not prevent an answer.
    """
    path = config_files.user_config_file(environment)
    try:
        return (path if stat.S_ISREG(path.stat().st_mode) else None), ()
    except (FileNotFoundError, NotADirectoryError):
        return None, ()
    except OSError as error:
        problem = f"{path} is not accessible ({error.strerror}) and is ignored"
        remedy = ArgumentMessage(
            "set QWCHAT_CONFIG to a folder of your own, or give ", SuggestedArgument("use_files", False)
        )
        return None, (ArgumentMessage(problem, ": ", remedy),)


def _from_flag(name: str, flag_value: FlagValue) -> SettingValue:
    spec = find_spec(name)
    if isinstance(flag_value, bool):
        return flag_value
    if isinstance(flag_value, str):
        return spec.parse(flag_value, spec.flag)
    return None if spec.none_word and list(flag_value) == [spec.none_word] else spec.check(tuple(flag_value), spec.flag)


def _from_environment(environment: Mapping[str, str]) -> dict[str, SourcedValue]:
    given = {}
    for spec in SETTING_SPECS:
        text = environment.get(spec.variable)
        if text:
            given[spec.name] = SourcedValue(spec.parse(text, spec.variable), spec.variable)
    return given


def _from_file(path: Path, *, project: bool) -> dict[str, SourcedValue]:
    values = config_files.checked_values(config_files.read(path), project=project)
    return {name: SourcedValue(value, str(path)) for name, value in values.items()}
