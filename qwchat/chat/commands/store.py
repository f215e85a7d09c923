"""Commands about keeping what was said."""

from __future__ import annotations

from pathlib import Path

from qwchat.chat import transcript
from qwchat.chat.commands.base import Command, Desk, Outcome, Show
from qwchat.chat.paths import paths
from qwchat.errors import UsageError


def _save(desk: Desk, argument: str) -> Outcome:
    if not argument:
        raise UsageError("/save needs the name of a file, as in /save talk.md")
    path = Path(argument).expanduser()
    transcript.save(desk.session, desk.model_name, path, overwrite=path.resolve() in desk.written)
    desk.written.add(path.resolve())
    return Show(f"saved to {path}")


COMMANDS: tuple[Command, ...] = (
    Command(
        "save", "FILE", "write the conversation as Markdown, or as .json", _save, complete=lambda _, typed: paths(typed)
    ),
)
