"""Undocumented parts of Typer, and of the Click in it, that the command line uses.

Typer (0.27 and later) creates a Pydantic adapter for every parameter of a command, used or not, and importing Pydantic
takes a sixth of the time in which a small model answers. The parameters of qwchat are strings, which the table of
settings parses, booleans, and a few numbers and names.

No other module uses these parts, and tests/test_typer.py checks the assumptions made here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

import typer

_ADAPTER = "_runtime_param"  # Attribute with the adapter; older versions lack it.

PARSER_ERROR = cast("type[Exception]", typer.BadParameter.__mro__[2])
"""Base class of all parser errors: BadParameter is a UsageError is a ClickException."""


def error_text(error: Exception) -> tuple[str, str | None]:
    """Return the text of a PARSER_ERROR, and the command that it is about, if it names one."""
    context = getattr(error, "ctx", None)
    text = error.format_message()  # type: ignore[attr-defined]
    return text, None if context is None else context.command_path


class _DirectConverter:
    """Replaces the adapter of a parameter."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return `value` in the type of `param`. Raises typer.BadParameter if it cannot be converted."""
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
    if annotation is float:
        try:
            return float(value)
        except ValueError:
            raise typer.BadParameter(f"{value!r} is not a number") from None
    if annotation in (str, bool) and type(value) is annotation:
        return value
    if annotation is Path:
        return Path(value)
    raise TypeError(f"no parameter of qwchat is a {annotation}, given {value!r}")


def without_adapters(params: list[Any]) -> list[Any]:
    """Return the `params` of a command, which now read their arguments without Pydantic."""
    for param in params:
        if hasattr(param, _ADAPTER):
            setattr(param, _ADAPTER, _DirectConverter())
    return params
