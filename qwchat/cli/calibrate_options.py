"""Options of `calibrate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from qwchat.calibration.windows_of_text import DEFAULT_TOKENS, LEAST_TOKENS
from qwchat.cli import completion
from qwchat.cli.options import Debug, Json, Quiet, Threads
from qwchat.errors import UsageError
from qwchat.limits import MAX_INTEGER


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Options of `calibrate`."""

    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Checkpoint, or unquantised model", autocompletion=completion.models),
    ]
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="Texts (default: the model writes them; - is stdin)"),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Statistics file (default: in the models folder)"),
    ] = None
    chat: Annotated[bool, typer.Option("--chat", help="The texts are conversations (JSON Lines)")] = False
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", help="Tokens of text to use")] = DEFAULT_TOKENS
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the text that the model writes")] = 0
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted calibration")] = False
    force: Annotated[bool, typer.Option("--force", help="Overwrite a statistics file")] = False
    threads: Threads = None
    json: Json = False
    quiet: Quiet = False
    debug: Debug = False

    def check(self) -> None:
        """Check numbers and files. Raises UsageError that names the flag."""
        if self.tokens < LEAST_TOKENS:
            raise UsageError(f"--tokens must be at least {LEAST_TOKENS}, not {self.tokens}")
        files = self.files or []
        if files.count("-") > 1:
            raise UsageError("- reads standard input: give it once")
        if self.chat and not files:
            raise UsageError("--chat describes files: give one with conversations")
        if not 0 <= self.seed <= MAX_INTEGER:
            raise UsageError(f"--seed must be from 0 to {MAX_INTEGER}, not {self.seed}")
