"""Options of the commands for models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from quant.presets import PRESETS
from qwchat.cli import completion
from qwchat.cli.engine_options import Activations
from qwchat.cli.options import (
    Debug,
    Json,
    Kv,
    ModelArgument,
    PresetOption,
    Quiet,
    Threads,
    check_range,
    complete_presets,
)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `export`."""

    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Converted model to export", autocompletion=completion.models)
    ]
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="Folder to create")]
    to: Annotated[
        Literal["compressed-tensors", "gguf", "safetensors"], typer.Option("--to", help="Format of the files")
    ]
    dtype: Annotated[
        Literal["bf16", "f16", "f32"] | None, typer.Option("--dtype", help="Type of unquantised weights and of scales")
    ] = None
    bits: Annotated[
        int | None, typer.Option("--bits", metavar="4|8", help="Re-quantise weights that would not keep their codes")
    ] = None
    shard_size: Annotated[str, typer.Option("--shard-size", metavar="SIZE", help="Most weights per file")] = "5GB"
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show types and sizes, write nothing")] = False
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted export")] = False
    force: Annotated[bool, typer.Option("--force", help="Overwrite an export in DEST")] = False
    threads: Threads = None
    json: Json = False
    quiet: Quiet = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Options of `show`."""

    model: ModelArgument = None
    json: Json = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class PullOptions:
    """Options of `pull`."""

    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Name from the catalogue, or OWNER/NAME[@REVISION]",
            autocompletion=completion.catalogue,
        ),
    ] = None
    file: Annotated[
        str | None, typer.Option("--file", metavar="GLOB", help="GGUF file to pull, such as '*q4_k_m*.gguf'")
    ] = None
    preset: PresetOption = None
    alias: Annotated[str | None, typer.Option("--as", metavar="NAME", help="Name of the model folder")] = None
    keep_checkpoint: Annotated[
        bool, typer.Option("--keep-checkpoint", help="Keep the downloaded checkpoint as well")
    ] = False
    threads: Threads = None
    json: Json = False
    quiet: Quiet = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class RemoveOptions:
    """Options of `rm`."""

    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Models in the models folder", autocompletion=completion.models),
    ]
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking")] = False
    quiet: Quiet = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class EstimateOptions:
    """Options of `estimate`."""

    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Model, catalogue name, config.json or OWNER/NAME",
            autocompletion=completion.catalogue,
        ),
    ] = None
    ctx: Annotated[
        list[str] | None, typer.Option("--ctx", metavar="N", help="Context window in tokens (repeatable)")
    ] = None
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="|".join(PRESETS),
            help="Only this preset (default: all)",
            autocompletion=complete_presets,
        ),
    ] = None
    kv: Kv = None
    activations: Activations = None
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu", metavar="NAME", help="Only this card (default: common ones)", autocompletion=completion.cards
        ),
    ] = None
    threads: Threads = None
    json: Json = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Options of `verify`."""

    model: ModelArgument = None
    json: Json = False
    quiet: Quiet = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Options of `list`."""

    json: Json = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of `bench`."""

    model: ModelArgument = None
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", metavar="N", help="Tokens to prefill")] = 512
    new_tokens: Annotated[int, typer.Option("--new-tokens", metavar="N", help="Tokens to decode")] = 64
    depth: Annotated[int, typer.Option("--depth", metavar="N", help="Tokens already in the context")] = 0
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", help="Rounds (the median is reported)")] = 3
    kv: Kv = None
    activations: Activations = None
    speculate: Annotated[
        bool,
        typer.Option("--speculate/--no-speculate", help="Decode with draft tokens"),
    ] = False
    threads: Threads = None
    json: Json = False
    quiet: Quiet = False
    debug: Debug = False

    def check(self) -> None:
        """Check the numbers. Raises UsageError that names the flag."""
        check_range("--prompt-tokens", self.prompt_tokens, 1)
        check_range("--new-tokens", self.new_tokens, 1)
        check_range("--depth", self.depth, 0)
        check_range("--rounds", self.rounds, 1)
        check_range("--threads", self.threads, 1)
