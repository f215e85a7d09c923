"""The commands `/help` and `/quit`, and the index of all commands."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from functools import partial

from qwchat.chat.commands.command import ChatCommand, CommandContext, Outcome, Quit, Show
from qwchat.chat.suggestions import Suggestion, match_suggestions
from qwchat.errors import UsageError

KEYS: tuple[tuple[str, str], ...] = (
    ("Enter", "send"),
    ("Alt-Enter, Ctrl-J", 'new line (in some terminals Shift-Enter; or write """ … """)'),
    ("Tab, Shift-Tab", "complete, or move through the menu (Enter accepts, Esc closes it)"),
    ("Ctrl-R, Up", "search and recall earlier input"),
    ("Ctrl-X Ctrl-E", "edit the message in $EDITOR"),
    ("Ctrl-T", "show or fold the thought of the last reply, or of this one while it thinks"),
    ("Ctrl-C, Esc", "stop the reply and keep its text; Ctrl-C twice leaves"),
    ("Ctrl-Z", "suspend"),
    ("Ctrl-D", "leave"),
)

# Command names of other programs, with ours.
_OTHER_NAMES = {
    **dict.fromkeys(("x", "leave"), "quit"),
    **dict.fromkeys(("regen", "regenerate", "again"), "retry"),
    **dict.fromkeys(("forget", "pop", "back"), "undo"),
    **dict.fromkeys(("load", "open"), "resume"),
    **dict.fromkeys(("reset", "restart"), "clear"),
    **dict.fromkeys(("compact", "summarize"), "summarise"),
    **dict.fromkeys(("read", "add", "upload", "attach"), "file"),
    **dict.fromkeys(("tokens", "usage"), "context"),
    **dict.fromkeys(("commands", "h", "?"), "help"),
    **dict.fromkeys(("role", "persona"), "as"),
    **dict.fromkeys(("go", "more"), "continue"),
}


CommandGroups = Sequence[tuple[str, Sequence[ChatCommand]]]
"""Titles, each with its commands."""


class CommandIndex:
    """All commands of the chat, in groups."""

    def __init__(self, groups: CommandGroups) -> None:
        self.groups = [*groups, ("Chat", _own_commands(self))]
        self.commands = tuple(command for _, group in self.groups for command in group)

    def find(self, name: str) -> ChatCommand | None:
        """Return the command with that name or alias; None if there is no such command."""
        return next((command for command in self.commands if name in (command.name, *command.aliases)), None)

    def hint(self, name: str) -> str:
        """Return advice for the unknown command `name`."""
        name = _OTHER_NAMES.get(name, name)
        # A typing error keeps the first letter or the length: /nothing is not one of /think.
        names = [each.name for each in self.commands if each.name[0] == name[:1] or abs(len(each.name) - len(name)) < 2]
        close = difflib.get_close_matches(name, names, n=1)
        return f"did you mean /{close[0]}?" if close else "/help lists the commands"


def _help(index: CommandIndex, context: CommandContext, argument: str) -> Outcome:
    if argument:
        return Show(_about(index, argument))
    usages = [command.usage for command in index.commands]
    width = max(len(name) for name in (*usages, *(keys for keys, _ in KEYS)))
    lines = []
    for title, group in index.groups:
        lines += [title, *(f"  {command.usage:<{width}}  {command.summary}" for command in group), ""]
    lines += ["Keys", *(f"  {keys:<{width}}  {effect}" for keys, effect in KEYS)]
    lines += ["", "/help NAME explains a command. To send a message that starts with a slash, type two."]
    return Show("\n".join(lines))


def _about(index: CommandIndex, argument: str) -> str:
    name = argument.lstrip("/").lower()
    command = index.find(name)
    if command is None:
        raise UsageError(f"there is no command /{name}: {index.hint(name)}")
    return f"{command.usage}  {command.summary}" + (f"\n\n{command.details}" if command.details else "")


def _complete_name(index: CommandIndex, context: CommandContext, typed: str) -> Iterable[Suggestion]:
    return match_suggestions(typed, ((command.name, command.summary) for command in index.commands))


def _quit(context: CommandContext, argument: str) -> Outcome:
    return Quit()


def _own_commands(index: CommandIndex) -> tuple[ChatCommand, ...]:
    """Return the commands of this module. `/help` covers all of `index`."""
    return (
        ChatCommand(
            "help",
            "[NAME]",
            "show this list, or explain a command",
            partial(_help, index),
            complete=partial(_complete_name, index),
        ),
        ChatCommand(
            "quit",
            "",
            "leave the chat",
            _quit,
            details="/exit, /bye and /q do the same, and so does exit or quit alone on a line.\n"
            "A saved chat prints the command that resumes it.",
            aliases=("exit", "bye", "q"),
        ),
    )
