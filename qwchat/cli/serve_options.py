"""Options of `qwchat serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from qwchat.cli.engine_options import Activations
from qwchat.cli.options import Debug, Flags, Kv, ModelArgument, Quiet, Threads
from qwchat.errors import UsageError
from qwchat.settings.resolve import Settings, resolve
from qwchat.settings.specs import find_spec

_DEVICE = find_spec("device")
_HIGHEST_PORT = 65_535
_MOST_CACHES = 256
_LONGEST_QUEUE = 10_000


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of `serve`."""

    model: ModelArgument = None
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on (others need a token)")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option("--port", metavar="N", help="Port to listen on (0 = any free one)")] = 8080
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", metavar="PATH", help="Private file with the bearer token of clients"),
    ] = None
    keep: Annotated[int, typer.Option("--keep", metavar="N", help="Number of conversations whose KV cache is kept")] = 4
    queue: Annotated[int, typer.Option("--queue", metavar="N", help="Number of requests that may wait")] = 64
    ctx: Annotated[str | None, typer.Option("--ctx", metavar="N", help=find_spec("ctx").help)] = None
    kv: Kv = None
    activations: Activations = None
    threads: Threads = None
    device: Annotated[
        str | None,
        typer.Option("--device", metavar=_DEVICE.value_type.metavar, help=_DEVICE.help),
    ] = None
    gpu_layers: Annotated[str | None, typer.Option("--gpu-layers", metavar="N", help=find_spec("gpu-layers").help)] = (
        None
    )
    quiet: Quiet = False
    debug: Debug = False

    def check(self) -> None:
        """Check the numbers. Raises UsageError that names the flag."""
        for flag, value, lowest, highest in (
            ("--port", self.port, 0, _HIGHEST_PORT),
            ("--keep", self.keep, 1, _MOST_CACHES),
            ("--queue", self.queue, 1, _LONGEST_QUEUE),
        ):
            if not lowest <= value <= highest:
                raise UsageError(f"{flag} must be from {lowest} to {highest:,}, not {value}")

    def settings(self) -> Settings:
        """Return the settings of the engine from flags, variables and files. Raises UsageError."""
        given = {
            "ctx": self.ctx,
            "kv": self.kv,
            "activations": self.activations,
            "threads": None if self.threads is None else str(self.threads),
            "device": self.device,
            "gpu-layers": self.gpu_layers,
        }
        return resolve(Flags({name: value for name, value in given.items() if value is not None}))
