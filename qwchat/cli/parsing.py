"""Commands whose words are taken as they are, and what a word that is not a command may have meant."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

from qwchat.cli import typer_parts
from qwchat.errors import UsageError

_NEARLY = 0.8  # of 1: one letter too many, too few or wrong in five
_LONGEST = 80  # characters of a text that are repeated in an error
_UNSAFE = frozenset('"\\$`!')  # within double quotes


class Command(TyperCommand):
    """A command that reads its words without adapters."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its parameters, that of `--help` too."""
        return typer_parts.without_adapters(super().get_params(ctx))


class Group(TyperGroup):
    """A command of commands that reads its words without adapters."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its parameters, that of `--help` too."""
        return typer_parts.without_adapters(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` begin with. Raises UsageError that says what was meant, for one there is not."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            raise UsageError(_meant(ctx.command_path, args, self.list_commands(ctx), asks=ctx.parent is None))
        return super().resolve_command(ctx, args)


def _meant(path: str, words: Sequence[str], names: Sequence[str], *, asks: bool) -> str:
    """What a person may have meant with `words` behind `path`; `asks`: a question for the model may stand there.

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
    """`words` as the value of `-p`, quoted for a shell, and the options behind them."""
    behind = next((number for number, word in enumerate(words) if word.startswith("-")), len(words))
    text = " ".join(words[:behind])
    if len(text) > _LONGEST:
        return '"…"'
    quoted = shlex.quote(text) if _UNSAFE & {*text} else f'"{text}"'
    return " ".join([quoted, *map(shlex.quote, words[behind:])])
