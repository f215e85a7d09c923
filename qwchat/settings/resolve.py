"""From flags, variables and files to one value per knob, each with where it came from.

The order, strongest first: flags, variables, the project file, the user's file; what none of them says is the model's
(`generation_config.json`) or built in. A persona stands right below the place that names it: named by `--as`, it is
weaker than the other flags and stronger than everything else; named in the user's file, that file overrules it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quant.wording import Argument, Change, Worded
from qwchat.errors import UsageError
from qwchat.settings import files, personas
from qwchat.settings.kinds import Value
from qwchat.settings.knobs import KNOBS, knob

BUILT_IN = "built in"

Raw = str | bool | Sequence[str]
"""What the command line gives: a text, the side of a switch, or several texts."""


@dataclass(frozen=True)
class Given:
    """A value, and where it came from as a person would say it: "--temp", "QWCHAT_TEMP", a file's path."""

    value: Value
    origin: str


@dataclass(frozen=True)
class Settings:
    """One value per knob.

    Attributes:
        given: what was set anywhere, by name.
        notices: what is worth telling about the files.
        project: the project file, where some of these values are its.
    """

    given: Mapping[str, Given] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    project: Path | None = None

    def __getitem__(self, name: str) -> Any:
        """The value of the knob `name`, of the type of its kind; KeyError for no knob."""
        found = self.given.get(name)
        return _DEFAULTS[name] if found is None else found.value

    def __contains__(self, name: str) -> bool:
        """Whether `name` was set anywhere."""
        return name in self.given

    def origin(self, name: str) -> str:
        """Where the value of `name` came from."""
        found = self.given.get(name)
        return BUILT_IN if found is None else found.origin


_DEFAULTS = {known.name: known.default for known in KNOBS}


def resolve(
    flags: Mapping[str, Raw] | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    folder: Path | None = None,
    use_files: bool = True,
    variables: Mapping[str, str] | None = None,
) -> Settings:
    """The settings in force.

    Args:
        flags: what the command line gives, by name of the knob.
        environment: of the process.
        folder: where to look for a project file; None is the working folder.
        use_files: whether configuration files count; a persona that is asked for is read in any case.
        variables: of the persona.

    Raises UsageError that names the argument, the variable, or the file and its line.
    """
    project = files.project_file(folder) if use_files else files.ProjectFile()
    own, trouble = _own(environment) if use_files else (None, ())
    given: dict[str, Given] = {}
    for layer in _layers(flags or {}, environment, project.path, own):
        named = "as" not in given and "as" in layer
        for name, found in layer.items():
            given.setdefault(name, found)
        if named and given["as"].value is not None:
            persona = personas.read(str(given["as"].value), environment)
            for name, value in persona.filled(variables or {}).items():
                given.setdefault(name, Given(value, f"persona {persona.name}"))
    if variables and ("as" not in given or given["as"].value is None):
        raise UsageError(
            Worded("there is no persona for ", Argument("variables"), ": name one with ", Change("as", ...))
        )
    heeded = any(found.origin == str(project.path) for found in given.values())
    return Settings(given, (*project.notices, *trouble), project.path if heeded else None)


def _layers(
    flags: Mapping[str, Raw],
    environment: Mapping[str, str],
    project: Path | None,
    own: Path | None,
) -> Iterator[dict[str, Given]]:
    yield {name: Given(_from_flag(name, raw), knob(name).given_as(raw)) for name, raw in flags.items()}
    yield _from_environment(environment)
    if project is not None:
        yield _from_file(project, project=True)
    if own is not None:
        yield _from_file(own, project=False)


def _own(environment: Mapping[str, str]) -> tuple[Path | None, tuple[str, ...]]:
    """The user's file, where there is one, and what there is to say about it.

    HOME may be somebody else's (`sudo -u`, a service): a folder that is closed to us is no reason not to answer.
    """
    path = files.user_file(environment)
    try:
        return (path if stat.S_ISREG(path.stat().st_mode) else None), ()
    except (FileNotFoundError, NotADirectoryError):
        return None, ()
    except OSError as error:
        trouble = f"{path} cannot be looked at ({error.strerror}), so nothing in it holds"
        remedy = Worded("set QWCHAT_CONFIG to a folder of your own, or give ", Change("use_files", False))
        return None, (Worded(trouble, ": ", remedy),)


def _from_flag(name: str, raw: Raw) -> Value:
    known = knob(name)
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str):
        return known.parse(raw, known.flag)
    return None if known.nothing and list(raw) == [known.nothing] else known.check(tuple(raw), known.flag)


def _from_environment(environment: Mapping[str, str]) -> dict[str, Given]:
    given = {}
    for known in KNOBS:
        text = environment.get(known.variable)
        if text:
            given[known.name] = Given(known.parse(text, known.variable), known.variable)
    return given


def _from_file(path: Path, *, project: bool) -> dict[str, Given]:
    values = files.values_of(files.read(path), project=project)
    return {name: Given(value, str(path)) for name, value in values.items()}
