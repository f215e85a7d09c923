"""Options of `sensitivity`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from qwchat.cli import completion
from qwchat.cli.options import Debug, Json, Quiet, Threads
from qwchat.errors import UsageError

LEAST_TOKENS, MOST_TOKENS = 16, 1 << 20


@dataclass(frozen=True, kw_only=True)
class SensitivityOptions:
    """Options of `sensitivity`."""

    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Checkpoint that is not converted", autocompletion=completion.models)
    ]
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="Texts to predict (default: built in; - reads standard input)"),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File to write (default: in the models folder)"),
    ] = None
    by: Annotated[
        Literal["tensor", "layer"], typer.Option("--by", help="Change one matrix, or a whole layer, at a time")
    ] = "tensor"
    tokens: Annotated[int | None, typer.Option("--tokens", metavar="N", help="Tokens of text to predict")] = None
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted measurement")] = False
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE")] = False
    threads: Threads = None
    json: Json = False
    quiet: Quiet = False
    debug: Debug = False

    def check(self) -> None:
        """Check the number of tokens and the files. Raises UsageError that names the flag."""
        if self.tokens is not None and not LEAST_TOKENS <= self.tokens <= MOST_TOKENS:
            raise UsageError(f"--tokens must be from {LEAST_TOKENS} to {MOST_TOKENS:,}, not {self.tokens:,}")
        if (self.files or []).count("-") > 1:
            raise UsageError("- reads standard input: give it once")
