"""Options of the command that converts a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwchat.cli.options import Debug, Json, PresetOption, Quiet, Threads
from qwchat.errors import UsageError

if TYPE_CHECKING:
    from quant.bit_budget import BitBudget


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of `convert`."""

    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Checkpoint folder, or GGUF file")]
    destination: Annotated[
        Path | None,
        typer.Argument(metavar="DEST", help="Folder to create (default: in the models folder)"),
    ] = None
    preset: PresetOption = None
    bits: Annotated[int | None, typer.Option("--bits", metavar="4|6|8", help="Bits per weight")] = None
    group_size: Annotated[int | None, typer.Option("--group-size", metavar="32|64|128", help="Weights per scale")] = (
        None
    )
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", metavar="FILE|sequential", help="Statistics file, or calibrate layer by layer"),
    ] = None
    bits_budget: Annotated[
        float | None, typer.Option("--bits-budget", metavar="BITS", help="Most bits per weight of the whole model")
    ] = None
    sensitivity: Annotated[
        Path | None,
        typer.Option("--sensitivity", metavar="FILE", help="Measured sensitivities (default: estimated)"),
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show formats and sizes, write nothing")] = False
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted conversion")] = False
    force: Annotated[bool, typer.Option("--force", help="Overwrite DEST")] = False
    max_kl: Annotated[
        float | None, typer.Option("--max-kl", metavar="NATS", help="Refuse a result with a larger mean KL divergence")
    ] = None
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not compare the result with SOURCE")] = False
    threads: Threads = None
    json: Json = False
    quiet: Quiet = False
    debug: Debug = False

    def check(self) -> None:
        """Check the options of the budget and the comparison. Raises UsageError that names the flag."""
        if self.bits_budget is None and self.sensitivity is not None:
            raise UsageError("--sensitivity needs --bits-budget")
        if self.bits_budget is not None and not 0 < self.bits_budget < math.inf:
            raise UsageError(f"--bits-budget must be a number above 0, not {self.bits_budget:g}")
        if self.max_kl is None:
            return
        if not 0 < self.max_kl < math.inf:
            raise UsageError(f"--max-kl must be a number above 0, not {self.max_kl:g}")
        if self.no_check:
            raise UsageError("--max-kl contradicts --no-check: leave out one of them")

    def budget(self) -> BitBudget | None:
        """Return the budget; None without one. Raises ArgumentError if the sensitivities cannot be read."""
        if self.bits_budget is None:
            return None
        from quant.bit_budget import BitBudget
        from quant.sensitivities import read_sensitivities

        measured = None if self.sensitivity is None else read_sensitivities(self.sensitivity)
        return BitBudget(self.bits_budget, measured)
