"""Options of `qwchat config` and its commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from qwchat.cli.options import Debug, Json
from qwchat.settings.specs import SETTING_SPECS


def _setting_names(incomplete: str) -> list[tuple[str, str]]:
    return [(spec.name, spec.help) for spec in SETTING_SPECS if spec.name.startswith(incomplete)]


def _values(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    words = [
        word
        for spec in SETTING_SPECS
        if spec.name == context.params.get("name")
        for word in (*spec.completions, "default")
    ]
    return [(word, "") for word in words if word.startswith(incomplete)]


NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of a setting, such as top-p", autocompletion=_setting_names)
]
Project = Annotated[bool, typer.Option("--project", help="Use the project file instead of your own")]


@dataclass(frozen=True, kw_only=True)
class ConfigCheckOptions:
    """Options of `config check`."""

    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class ConfigShowOptions:
    """Options of `config` and `config show`."""

    json: Json = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class ConfigGetOptions:
    """Options of `config get`."""

    name: NameArgument
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class ConfigSetOptions:
    """Options of `config set`."""

    name: NameArgument
    value: Annotated[
        str,
        typer.Argument(
            metavar="VALUE", help="New value (default: remove the setting from the file)", autocompletion=_values
        ),
    ]
    project: Project = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class ConfigFileOptions:
    """Options of `config path` and `config edit`."""

    project: Project = False
    debug: Debug = False
