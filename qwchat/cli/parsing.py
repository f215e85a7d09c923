"""Commands whose words are taken as they are, without what Typer loads to convert them.

Typer (0.27 and later) makes a Pydantic adapter for every parameter of a command, given or not, and importing Pydantic
takes a sixth of the time in which a small model answers.  What is asked for here are texts, which the table of settings
reads, switches, and a few numbers and names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

_ADAPTER = "_runtime_param"  # Where a parameter keeps what converts it; versions without Pydantic have no such place.


class _Plain:
    """Stands in for the adapter of a parameter."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """``value`` in the type of ``param``. Raises typer.BadParameter where it cannot be."""
        if param.multiple or param.nargs == -1:
            return () if value is None else list(value)
        return None if value is None else _converted(value, param.type_descriptor.annotation)


def _converted(value: Any, annotation: Any) -> Any:
    if get_origin(annotation) is Literal:
        if value not in get_args(annotation):
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(get_args(annotation))}")
        return value
    if annotation is int:
        try:
            return int(value)
        except ValueError:
            raise typer.BadParameter(f"{value!r} is not a whole number") from None
    if annotation in (str, bool) and type(value) is annotation:
        return value
    if annotation is Path:
        return Path(value)
    raise TypeError(f"no parameter of qwchat is a {annotation}, given {value!r}")


def _plainly(params: list[Any]) -> list[Any]:
    for param in params:
        if hasattr(param, _ADAPTER):
            setattr(param, _ADAPTER, _Plain())
    return params


class Command(TyperCommand):
    """A command that reads its words without adapters."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its parameters, that of ``--help`` too."""
        return _plainly(super().get_params(ctx))


class Group(TyperGroup):
    """A command of commands that reads its words without adapters."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its parameters, that of ``--help`` too."""
        return _plainly(super().get_params(ctx))
