"""Commands whose words are taken as they are, without what Typer loads to convert them.

Typer (0.27 and later) makes a Pydantic adapter for every parameter of a command, given or not, and importing Pydantic
takes a sixth of the time in which a small model answers.  What is asked for here are texts, which the table of settings
reads, switches, and a few numbers and names.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

from qwchat.errors import UsageError

_NEARLY = 0.8  # of 1: one letter too many, too few or wrong in five
_LONGEST = 80  # characters of a text that are repeated in an error
_UNSAFE = frozenset('"\\$`!')  # within double quotes
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

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that ``args`` begin with. Raises UsageError that says what was meant, for one there is not."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            raise UsageError(_meant(ctx.command_path, args, self.list_commands(ctx), asks=ctx.parent is None))
        return super().resolve_command(ctx, args)


def _meant(path: str, words: Sequence[str], names: Sequence[str], *, asks: bool) -> str:
    """What a person may have meant with ``words`` behind ``path``; ``asks``: a question for the model may stand there.

    A first word that is nearly a command is one. A single word that is less like one may be either.
    """
    name = words[0]
    near = difflib.get_close_matches(name, names, n=1, cutoff=_NEARLY)
    alone = len(words) == 1 and " " not in name
    alike = near or (difflib.get_close_matches(name, names, n=1) if alone or not asks else [])
    shown = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…"
    question = f"{path} -p {_question(words)}" if asks and not near and name.strip() else ""
    if alike:
        meant = f"did you mean {path} {alike[0]}{f', or {question} to ask the model' if question else ''}?"
    else:
        meant = f"to ask the model, type {question}" if question else f"{path} --help lists what there is"
    return f"there is no command {shown!r}: {meant}"


def _question(words: Sequence[str]) -> str:
    """``words`` as the value of ``-p``, quoted for a shell, and the options behind them."""
    behind = next((number for number, word in enumerate(words) if word.startswith("-")), len(words))
    text = " ".join(words[:behind])
    if len(text) > _LONGEST:
        return '"…"'
    quoted = shlex.quote(text) if _UNSAFE & {*text} else f'"{text}"'
    return " ".join([quoted, *map(shlex.quote, words[behind:])])
