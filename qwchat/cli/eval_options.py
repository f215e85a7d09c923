"""Options of `qwchat eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from qwchat.cli import completion
from qwchat.cli.engine_options import Activations
from qwchat.cli.options import Debug, Flags, Json, Kv, Quiet, Threads
from qwchat.errors import UsageError
from qwchat.settings.specs import find_spec


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Options of `eval`."""

    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=find_spec("model").help, autocompletion=completion.models)
    ]
    tasks: Annotated[list[str], typer.Argument(metavar="TASK", help="Questions: .csv (MMLU, C-Eval) or .jsonl")]
    shots: Annotated[int, typer.Option("--shots", metavar="K", help="Examples with answers in each prompt")] = 0
    shots_file: Annotated[
        Path | None,
        typer.Option(
            "--shots-file", metavar="FILE", help="Examples, or a folder with a SUBJECT_dev file for each task"
        ),
    ] = None
    chat: Annotated[bool, typer.Option("--chat", help="Render prompts with the chat template")] = False
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Ask the first N questions of each task")
    ] = None
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="RESULT", help="Write answers and figures; continue a stopped run"),
    ] = None
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="RESULT", help="Compare with the result of another model"),
    ] = None
    ctx: Annotated[int | None, typer.Option("--ctx", metavar="N", help=find_spec("ctx").help)] = None
    kv: Kv = None
    activations: Activations = None
    threads: Threads = None
    json: Json = False
    quiet: Quiet = False
    debug: Debug = False

    def check(self) -> None:
        """Check the numbers. Raises UsageError that names the flag."""
        if self.shots < 0:
            raise UsageError(f"--shots must be at least 0, not {self.shots}")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit must be at least 1, not {self.limit}")
        if self.shots_file is not None and not self.shots:
            raise UsageError("--shots-file gives examples that no prompt has: add --shots K, or leave it out")

    def engine_flags(self) -> Flags:
        """Return the settings of the engine. The KV cache is exact unless `--kv` says otherwise."""
        given = {"ctx": self.ctx, "threads": self.threads, "activations": self.activations}
        return Flags(kv=self.kv or "f32", **{name: str(value) for name, value in given.items() if value is not None})
