"""Options of the commands that run a model."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from qwchat.settings.specs import find_spec

Activations = Annotated[
    Literal["8", "16"] | None,
    typer.Option("--activations", help=find_spec("activations").help),
]
