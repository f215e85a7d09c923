"""Options of the commands for the machine and the installation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from qwchat.cli.options import Debug, Json


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Options of `doctor`."""

    json: Json = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class CompletionOptions:
    """Options of `completion`."""

    shell: Annotated[
        Literal["bash", "zsh", "fish", "powershell"],
        typer.Argument(metavar="SHELL", help="Shell to print the script for"),
    ]
    debug: Debug = False
