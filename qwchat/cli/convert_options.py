"""Options of the command that converts a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from qwchat.cli.options import Debug, Json, PresetOption, Quiet, Threads


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of `convert`."""

    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Checkpoint folder, or GGUF file")]
    destination: Annotated[
        Path | None,
        typer.Argument(metavar="DEST", help="Folder to create (default: in the models folder)"),
    ] = None
    preset: PresetOption = None
    bits: Annotated[int | None, typer.Option("--bits", metavar="4|8", help="Bits per weight")] = None
    group_size: Annotated[int | None, typer.Option("--group-size", metavar="32|64|128", help="Weights per scale")] = (
        None
    )
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show formats and sizes, write nothing")] = False
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted conversion")] = False
    force: Annotated[bool, typer.Option("--force", help="Overwrite DEST")] = False
    threads: Threads = None
    json: Json = False
    quiet: Quiet = False
    debug: Debug = False
