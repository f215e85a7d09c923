"""The slash commands of the chat. They change the session and return what to do next."""

from __future__ import annotations

import re
from collections.abc import Iterable

from qwchat.chat import mentions
from qwchat.chat.commands import (
    context_commands,
    model_commands,
    reply_commands,
    session_commands,
    setting_commands,
    turn_commands,
)
from qwchat.chat.commands.command import (
    ChatCommand,
    CommandContext,
    Draft,
    Outcome,
    Quit,
    Show,
    StreamReply,
    StreamSummary,
)
from qwchat.chat.commands.help_commands import CommandIndex
from qwchat.chat.suggestions import Suggestion, match_suggestions
from qwchat.errors import UsageError

__all__ = [
    "COMMANDS",
    "GROUPS",
    "ChatCommand",
    "CommandContext",
    "Draft",
    "Outcome",
    "Quit",
    "Show",
    "StreamReply",
    "StreamSummary",
    "message_text",
    "parse",
    "suggestions",
]

INDEX = CommandIndex(
    (
        ("Conversation", turn_commands.COMMANDS),
        ("Context", context_commands.COMMANDS),
        ("Settings", (*model_commands.COMMANDS, *setting_commands.COMMANDS)),
        ("Last reply", reply_commands.COMMANDS),
        ("Sessions and files", session_commands.COMMANDS),
    )
)
GROUPS = INDEX.groups
COMMANDS = INDEX.commands

_COMMAND = re.compile(r"/([A-Za-z][A-Za-z-]*)(?:\s+(.*))?", re.DOTALL)


def parse(text: str) -> tuple[ChatCommand, str] | None:
    """Return the command in `text` and its argument; None if `text` is a message.

    A message starts with `//` for a slash, or with a slash and anything but a word (`/usr/bin`). A text of several
    lines that starts with an unknown word is a message as well.

    Raises:
        UsageError: an unknown command on a line of its own.
    """
    if text.strip() == "/":
        raise UsageError("the command name is missing: /help lists the commands (type // to send a slash)")
    match = _COMMAND.fullmatch(text.strip())
    if match is None:
        return None
    name, argument = match[1].lower(), (match[2] or "").strip()
    command = INDEX.find(name)
    if command is not None:
        return command, argument
    if "\n" in text.strip():
        return None
    raise UsageError(f"there is no command /{match[1]}: {INDEX.hint(name)} (start with // to send it as a message)")


def message_text(text: str) -> str:
    """Return the message that a typed line stands for: `//` at its beginning becomes `/`."""
    return text[1:] if text.startswith("//") else text


def suggestions(context: CommandContext, text: str) -> Iterable[Suggestion]:
    """Return completions for `text`, the input up to the cursor: of a command or of a mentioned file."""
    name, blank, argument = text.partition(" ")
    if not name.startswith("/") or "\n" in text:
        return mentions.suggestions(text)
    if not blank:
        return match_suggestions(name, ((f"/{command.name}", command.summary) for command in COMMANDS))
    command = INDEX.find(name[1:].lower())
    return () if command is None else command.complete(context, argument)
