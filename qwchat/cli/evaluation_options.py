"""Options of the commands that evaluate a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from qwchat.cli import completion
from qwchat.cli.engine_options import Activations
from qwchat.cli.options import Debug, Flags, Json, Kv, Quiet, Threads
from qwchat.errors import UsageError
from qwchat.settings.specs import find_spec

LEAST_WINDOW = 16


@dataclass(frozen=True, kw_only=True)
class PerplexityOptions:
    """Options of `perplexity`."""

    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=find_spec("model").help, autocompletion=completion.models)
    ]
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Texts to predict (- reads standard input)")]
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="MODEL",
            help="Compare with this model (KL divergence)",
            autocompletion=completion.models,
        ),
    ] = None
    chat: Annotated[bool, typer.Option("--chat", help="Score the replies of conversations (JSON Lines)")] = False
    ctx: Annotated[int, typer.Option("--ctx", metavar="N", help="Tokens that are evaluated together")] = 1024
    kv: Kv = None
    activations: Activations = None
    threads: Threads = None
    json: Json = False
    quiet: Quiet = False
    debug: Debug = False

    def check(self) -> None:
        """Check the window and the files. Raises UsageError that names the flag."""
        if self.ctx < LEAST_WINDOW:
            raise UsageError(f"--ctx must be at least {LEAST_WINDOW}, not {self.ctx}")
        if self.files.count("-") > 1:
            raise UsageError("- reads standard input: give it once")

    def engine_flags(self) -> Flags:
        """Return the settings of the engine. The KV cache is exact unless `--kv` says otherwise."""
        threads = {} if self.threads is None else {"threads": str(self.threads)}
        activations = {} if self.activations is None else {"activations": self.activations}
        return Flags(kv=self.kv or "f32", ctx=str(self.ctx), **threads, **activations)
