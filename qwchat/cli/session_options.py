"""Options of `qwchat sessions` and its commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from qwchat.cli import completion
from qwchat.cli.options import Debug, Json, Quiet

SessionArgument = Annotated[
    str,
    typer.Argument(
        metavar="SESSION", help="Name, ID, start of an ID or part of a title", autocompletion=completion.sessions
    ),
]


@dataclass(frozen=True, kw_only=True)
class SessionsListOptions:
    """Options of `sessions` and `sessions list`."""

    json: Json = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class SessionsShowOptions:
    """Options of `sessions show`."""

    session: SessionArgument
    json: Json = False
    quiet: Quiet = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class SessionsGrepOptions:
    """Options of `sessions grep`."""

    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="Regular expression (Python syntax)")]
    session: Annotated[
        str | None,
        typer.Argument(metavar="SESSION", help="Session to search (default: all)", autocompletion=completion.sessions),
    ] = None
    ignore_case: Annotated[bool, typer.Option("--ignore-case", "-i", help="Ignore case")] = False
    fixed: Annotated[bool, typer.Option("--fixed-strings", "-F", help="Treat PATTERN as plain text")] = False
    json: Json = False
    quiet: Quiet = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class SessionsRemoveOptions:
    """Options of `sessions rm`."""

    sessions: Annotated[
        list[str],
        typer.Argument(metavar="SESSION", help="Names, IDs or parts of titles", autocompletion=completion.sessions),
    ]
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation")] = False
    quiet: Quiet = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class SessionsExportOptions:
    """Options of `sessions export`."""

    session: SessionArgument
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="File to write (default: standard output)")] = None
    form: Annotated[
        Literal["md", "html", "json"] | None,
        typer.Option("--format", help="Format (default: by the extension of FILE, or md)"),
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE")] = False
    quiet: Quiet = False
    debug: Debug = False
