"""Typer commands without Pydantic adapters, and suggestions for unknown commands."""

from __future__ import annotations

import difflib
import shlex
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

from qwchat.cli import typer_internals
from qwchat.errors import UsageError

_CLOSE_MATCH = 0.8  # similarity from 0 to 1: about one wrong letter in five
_MAX_SHOWN = 80  # characters of a text in an error
_UNSAFE = frozenset('"\\$`!')  # in double quotes


class CliCommand(TyperCommand):
    """A command that reads its arguments without adapters."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return its parameters, including `--help`."""
        return _without_full_stop(typer_internals.without_adapters(super().get_params(ctx)))


class LazyCommands(UserDict[str, Any]):
    """The commands of a group by name, each made when it is asked for: only one of them runs.

    Attributes:
        summaries: one line of help by name.
    """

    def __init__(self, makers: Mapping[str, tuple[str, Callable[[], Any]]]) -> None:
        super().__init__()
        self.summaries = {name: summary for name, (summary, _) in makers.items()}
        self.data = {name: make for name, (_, make) in makers.items()}

    def __getitem__(self, name: str) -> Any:
        """Return a new command."""
        return self.data[name]()


class CliGroup(TyperGroup):
    """A group of commands that reads its arguments without adapters."""

    commands: Any  # A mapping.

    def get_params(self, ctx: Any) -> list[Any]:
        """Return its parameters, including `--help`."""
        return _without_full_stop(typer_internals.without_adapters(super().get_params(ctx)))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands without making them."""
        if isinstance(self.commands, LazyCommands):
            with formatter.section("Commands"):
                formatter.write_dl(list(self.commands.summaries.items()))
        else:
            super().format_commands(ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that `args` begin with. Raises UsageError with a suggestion if it is unknown."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            raise UsageError(_suggestion(ctx.command_path, args, self.list_commands(ctx), at_root=ctx.parent is None))
        return super().resolve_command(ctx, args)


def _without_full_stop(params: list[Any]) -> list[Any]:
    """Return `params`, whose `--help` option now reads like every other option."""
    for param in params:
        if param.name == "help":
            param.help = param.help.rstrip(".")
    return params


def _suggestion(path: str, words: Sequence[str], names: Sequence[str], *, at_root: bool) -> str:
    """Return the error for unknown `words` after `path`, with a suggestion.

    A first word that is nearly a command is taken for it. A single word that is less similar may be either a command
    or, `at_root`, a question.
    """
    name = words[0]
    near_match = difflib.get_close_matches(name, names, n=1, cutoff=_CLOSE_MATCH)
    single_word = len(words) == 1 and " " not in name
    match = near_match or (difflib.get_close_matches(name, names, n=1) if single_word or not at_root else [])
    shown = name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}…"
    question = f"{path} -p {_question(words)}" if at_root and not near_match and name.strip() else ""
    if match:
        meant = f"did you mean {path} {match[0]}{f', or {question} to ask the model' if question else ''}?"
    else:
        meant = f"to ask the model, type {question}" if question else f"{path} --help lists the commands"
    return f"there is no command {shown!r}: {meant}"


def _question(words: Sequence[str]) -> str:
    """Return `words` as the value of `-p`, quoted for a shell, followed by the options after them."""
    options_start = next((number for number, word in enumerate(words) if word.startswith("-")), len(words))
    text = " ".join(words[:options_start])
    if len(text) > _MAX_SHOWN:
        return '"…"'
    quoted = shlex.quote(text) if _UNSAFE & {*text} else f'"{text}"'
    return " ".join([quoted, *map(shlex.quote, words[options_start:])])
