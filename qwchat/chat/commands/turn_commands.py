"""Commands for turns: retry, continue, undo, edit, and switch between alternatives."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from functools import partial

from qwchat.chat.commands.command import ChatCommand, CommandContext, Draft, Outcome, Show, StreamReply
from qwchat.chat.recap import question_line
from qwchat.chat.reply_settings import REPLY_SETTING_NAMES, ReplySettings
from qwchat.chat.session import Session
from qwchat.chat.suggestions import Suggestion, match_suggestions
from qwchat.conversation.reply_parts import is_unfinished_thought, reply_parts
from qwchat.conversation.title import without_files
from qwchat.conversation.tree import Node
from qwchat.errors import UsageError
from qwchat.request import random_seed

_EXCERPT = 60  # Characters shown of a turn.
_EDIT = re.compile(r"(--reply(?!\S))?\s*(?:(\d{1,9})(?!\S))?\s?(.*)", re.DOTALL)
_GREEDY_HINT = "temp is 0, so the reply will be the same: try /retry --temp 0.7"


def _retry(context: CommandContext, argument: str) -> Outcome:
    session = context.session
    reply_settings, seed = _retry_settings(session.reply_settings, session.defaults, argument)
    session.question()
    return StreamReply(
        partial(session.retry, settings=reply_settings, seed=seed), None if reply_settings.sampled else _GREEDY_HINT
    )


def _retry_settings(reply_settings: ReplySettings, defaults: ReplySettings, argument: str) -> tuple[ReplySettings, int]:
    """Return the settings changed as in `--name value ...`, and the seed: random unless it is among them."""
    words = [
        part for word in _split_words(argument) for part in (word.split("=", 1) if word.startswith("--") else [word])
    ]
    names, values = words[::2], words[1::2]
    if len(names) != len(values) or not all(name.startswith("--") for name in names):
        raise UsageError(f"/retry takes settings, for example /retry --temp 0.9 --seed 7, not {argument!r}")
    for name, value in zip(names, values, strict=True):
        reply_settings = reply_settings.changed(name.removeprefix("--"), value, defaults)
    seed = reply_settings.seed if "--seed" in names else None
    return reply_settings, random_seed() if seed is None else seed


def _split_words(argument: str) -> list[str]:
    try:
        return shlex.split(argument)
    except ValueError as error:
        raise UsageError(f"cannot parse {argument!r} ({error}): close the quotes") from error


def _complete_retry(context: CommandContext, typed: str) -> Iterable[Suggestion]:
    word = typed.rpartition(" ")[2]
    return match_suggestions(
        word, ((f"--{name}", context.session.reply_settings.display_value(name)) for name in REPLY_SETTING_NAMES)
    )


def _continue(context: CommandContext, argument: str) -> Outcome:
    context.session.continuable_turn()
    return StreamReply(context.session.continue_reply)


def _undo(context: CommandContext, argument: str) -> Outcome:
    number = _number("undo", argument)
    first = context.session.undo(number)
    undone, restores = ("", "it") if number == 1 else (f"{number} messages, back to ", "them")
    return Show(f"undid {undone}“{excerpt(first)}”; /redo restores {restores}\n{_position(context.session)}")


def _redo(context: CommandContext, argument: str) -> Outcome:
    turns = context.session.redo()
    return Show(f"restored {turns} turn{'s' if turns > 1 else ''}\n{_position(context.session)}")


def _edit(context: CommandContext, argument: str) -> Outcome:
    session = context.session
    match = _EDIT.fullmatch(argument)
    assert match is not None, "the pattern matches any text"
    number = int(match[2] or 1)
    old = session.reply(number) if match[1] else session.question(number)
    if not match[3]:
        beginning = f"/edit {'--reply ' if match[1] else ''}{number}"
        return Draft(f"{beginning}{_separator(old.content)}{old.content}")
    if not match[1]:
        return StreamReply(partial(session.edit_question, number, match[3]))
    new = session.edit_reply(number, match[3])
    alternatives = len(session.tree.siblings(new.id))
    return Show(f"edited the reply (alternative {alternatives} of {alternatives}); /continue resumes it")


def _separator(text: str) -> str:
    return "\n" if "\n" in text or text[:1].isspace() else " "


def _complete_edit(context: CommandContext, typed: str) -> Iterable[Suggestion]:
    return match_suggestions(typed, (("--reply", "edit a reply"),)) if typed else ()


def _alt(context: CommandContext, argument: str) -> Outcome:
    session = context.session
    siblings, index = session.alternatives()
    if argument in ("", "next", "prev"):
        wanted = (index + (-1 if argument == "prev" else 1)) % len(siblings)
    else:
        wanted = _number("alt", argument) - 1
    node = session.select_alternative(wanted)
    path = session.tree.path()
    below = path[path.index(node) + 1 :]
    shown, later = (node, below) if node.role == "assistant" else (below[0] if below else None, below[1:])
    place = f"{_name(node)} {wanted + 1} of {len(siblings)}"
    if later:
        place += f", followed by {len(later)} more turn{'s' if len(later) > 1 else ''}"
    if node.role == "user":
        place += f": {question_line(node.content)}"
    if shown is None or is_unfinished_thought(shown):
        return Show(place)
    return Show(place, message=reply_parts(shown).answer, as_reply=True)


def _clear(context: CommandContext, argument: str) -> Outcome:
    if not context.session.tree.path():
        return Show("the conversation is already empty")
    context.session.clear()
    return Show("cleared the conversation; /redo restores it")


def excerpt(node: Node) -> str:
    """Return the beginning of a turn on one line; for a message, as it was typed, without attached files."""
    thought, answer = reply_parts(node)
    line = " ".join((without_files(answer) if node.role == "user" else answer or thought).split())
    return line if len(line) <= _EXCERPT else line[: _EXCERPT - 1] + "…"


def _position(session: Session) -> str:
    """Return where the conversation ends now."""
    path = session.tree.path()
    if not path:
        return "the conversation is now empty"
    return f"the conversation now ends with the {_name(path[-1])} “{excerpt(path[-1])}”"


def _name(node: Node) -> str:
    return "message" if node.role == "user" else "reply"


def _number(command: str, argument: str) -> int:
    if not argument:
        return 1
    if not argument.isascii() or not argument.isdecimal() or len(argument) > 9 or int(argument) < 1:
        raise UsageError(f"/{command} takes a number from 1, not {argument!r}")
    return int(argument)


COMMANDS: tuple[ChatCommand, ...] = (
    ChatCommand(
        "retry",
        "[--NAME VALUE ...]",
        "generate another reply to the last message",
        _retry,
        details="Settings apply to this reply only: /retry --temp 1.2 --seed 7. Without --seed, each retry samples\n"
        "differently, even if a seed is set. The old reply is kept: /alt switches between them.",
        complete=_complete_retry,
    ),
    ChatCommand(
        "continue",
        "",
        "continue a reply that was cut off",
        _continue,
        details="The reply keeps its seed and settings, except those changed since, so it reads as if it had never\n"
        "been cut off. A message without a reply, for example after a crash, gets one.",
    ),
    ChatCommand(
        "undo",
        "[N]",
        "undo the last message, or the last N",
        _undo,
        details="Nothing is lost: /redo restores the turns. After another message, /alt switches between the two.",
    ),
    ChatCommand("redo", "", "restore what /undo or /clear removed", _redo),
    ChatCommand(
        "edit",
        "[--reply] [N] [TEXT]",
        "edit a message, or a reply",
        _edit,
        details="/edit opens the last message for editing, /edit 2 the one before. Once sent, it replaces the old\n"
        "message and gets a new reply. /edit --reply does the same with a reply: the model treats the new text as its\n"
        "own, and /continue resumes it. The old version is kept: /alt switches between them.",
        complete=_complete_edit,
    ),
    ChatCommand(
        "alt",
        "[N|next|prev]",
        "switch between alternative replies or messages",
        _alt,
        details="It applies to the last turn of the conversation that has alternatives.",
    ),
    ChatCommand("clear", "", "start over; the system prompt and the settings stay", _clear),
)
