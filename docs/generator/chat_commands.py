"""The page of the chat's commands and keys, from the tables behind `/help`."""

from __future__ import annotations

from docs.generator.markdown import code, escaped, sentence, table
from docs.generator.markdown import page as whole_page
from qwchat.chat.commands import COMMANDS, GROUPS
from qwchat.chat.commands.command import ChatCommand
from qwchat.chat.commands.help_commands import KEYS

_INTRODUCTION = """\
Type `/help` in the chat for the list and `/help NAME` for one command. Tab completes commands and their arguments.
A message that begins with a slash is sent with a second slash in front: `//usr/bin` sends `/usr/bin`."""


def _section(command: ChatCommand) -> str:
    lines = [f"### /{command.name}", code(command.usage), sentence(command.summary)]
    if command.details:
        lines.append(escaped(command.details))
    if command.aliases:
        lines.append(f"Also: {', '.join(code(f'/{alias}') for alias in command.aliases)}.")
    return "\n\n".join(lines)


def page() -> str:
    """Return the page."""
    overview = table(
        ["Command", "Effect"],
        [(f"[{code(each.usage)}](#{each.name})", escaped(each.summary)) for each in COMMANDS],
    )
    parts = [_INTRODUCTION, overview]
    for title, commands in GROUPS:
        parts += [f"## {title}", *map(_section, commands)]
    parts += ["## Keys", table(["Key", "Effect"], [(escaped(key), escaped(effect)) for key, effect in KEYS])]
    return whole_page("Chat commands", *parts)
