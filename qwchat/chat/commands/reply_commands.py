"""Commands for the last reply: show its source, copy it, write its code to files, show figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields

from qwchat.characters import sanitise, sanitise_name
from qwchat.chat.commands.command import ChatCommand, CommandContext, Outcome, Show
from qwchat.chat.display import KeyValues
from qwchat.chat.path_completion import complete_path
from qwchat.chat.statistics import totals
from qwchat.chat.suggestions import Suggestion, match_suggestions
from qwchat.conversation.reply_parts import reply_parts
from qwchat.errors import UsageError
from qwchat.events import Stats
from qwchat.settings.specs import find_spec
from qwchat.text_files import expand_path, real_path, write_atomically

_BLOCK = re.compile(r"(?:code\b\s*)?(\d{1,6})?(?!\S)\s*(.*)", re.DOTALL)
_MAX_FIGURE = 1e15  # Above any token count or time.
_FIRST_TOKEN = "time_to_first_token"  # None if the reply has no token.
_EXCERPT = 40  # Characters of a block's first line shown beside a completion.


def _raw(context: CommandContext, argument: str) -> Outcome:
    if argument in ("on", "off"):
        context.view.set_rendering("plain" if argument == "on" else "markdown")
        return Show("replies are shown " + ("as plain text" if argument == "on" else "as rendered Markdown"))
    if argument:
        raise UsageError(f"/raw takes on, off or nothing, not {argument!r}")
    return Show(message=context.session.reply().content)


def _think(context: CommandContext, argument: str) -> Outcome:
    if argument:
        return Show(context.settings.change("think", argument))
    thought = reply_parts(context.session.reply()).thought
    if not thought:
        raise UsageError("the last reply has no thought")
    return Show(message=thought)


def _complete_think(context: CommandContext, typed: str) -> Iterable[Suggestion]:
    return match_suggestions(typed, ((mode, "") for mode in find_spec("think").completions))


def _copy(context: CommandContext, argument: str) -> Outcome:
    text, label = _text_to_copy(context, argument)
    text = sanitise(text)  # The user may paste it into a shell.
    if not context.view.copy(text):
        raise UsageError("there is no terminal, so the clipboard cannot be reached: /write saves code to a file")
    advice = context.view.copy_advice(text)
    return Show(f"copied {label} to the clipboard ({len(text):,} characters)" + (f"; {advice}" if advice else ""))


def _text_to_copy(context: CommandContext, argument: str) -> tuple[str, str]:
    """Return the text that `/copy` copies, and what to call it."""
    if not argument:
        return _last_reply(context), "the reply"
    match = _BLOCK.fullmatch(argument)
    if match is None or match[2] or not (match[1] or argument.startswith("code")):
        raise UsageError(f"/copy takes no argument, code or code N, not {argument!r}")
    number, text = _block(context, match[1])
    return text.removesuffix("\n"), f"code block {number}"


def _write(context: CommandContext, argument: str) -> Outcome:
    match = _BLOCK.fullmatch(argument)
    name = (match[2] if match else argument).strip()
    if not name:
        raise UsageError("/write needs a file name, for example /write 2 fix.py")
    number, text = _block(context, match[1] if match else None)
    path = expand_path(name)
    write_atomically(path, text, overwrite=real_path(path) in context.written)
    context.written.add(real_path(path))
    lines = text.count("\n")
    return Show(f"wrote code block {number} to {sanitise_name(str(path))} ({lines:,} line{'' if lines == 1 else 's'})")


def _stats(context: CommandContext, argument: str) -> Outcome:
    replies = [node for node in context.session.tree.nodes if node.role == "assistant"]
    with_stats = [stats for node in replies if node.stats and (stats := _stats_of(node.stats)) is not None]
    stopped = context.session.stopped_stats
    if not with_stats and not stopped:
        raise UsageError("there are no figures yet: send a message first")
    without_stats = len(replies) - len(with_stats)
    without = f" ({without_stats} more without figures)" if without_stats else ""
    rows = [("replies", f"{len(with_stats)}{without}")]
    rows += [("stopped", f"{len(stopped)} before the first token")] if stopped else []
    return Show(table=KeyValues([*rows, *totals([*with_stats, *stopped])]))


def _stats_of(kept: Mapping[str, object]) -> Stats | None:
    """Return the recorded figures of a reply; None if they are invalid, since a session file may claim anything."""
    needed = {field.name for field in fields(Stats) if field.default is MISSING}
    names = {field.name for field in fields(Stats)}
    numbers = {
        name: value
        for name, value in kept.items()
        if name in names and (_is_count(value) or (name == _FIRST_TOKEN and value is None))
    }
    return Stats(**numbers) if needed <= numbers.keys() else None  # type: ignore[arg-type]


def _is_count(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MAX_FIGURE


def _last_reply(context: CommandContext) -> str:
    return reply_parts(context.session.reply()).answer


def _block(context: CommandContext, wanted: str | None) -> tuple[int, str]:
    """Return number and text of a code block of the last reply: the `wanted` one, or the only one."""
    blocks = context.view.code_blocks(_last_reply(context))
    if not blocks:
        raise UsageError("the last reply has no code blocks")
    if wanted is None and len(blocks) > 1:
        raise UsageError(
            f"the last reply has {len(blocks)} code blocks: choose one, for example /copy code 1 or /write 1 FILE"
        )
    number = int(wanted or 1)
    if not 1 <= number <= len(blocks):
        raise UsageError(f"there is no code block {number}: the last reply has {len(blocks)}")
    return number, blocks[number - 1]


def _block_choices(context: CommandContext) -> list[tuple[str, str]]:
    """Return the number of each code block with its first line."""
    try:
        blocks = context.view.code_blocks(_last_reply(context))
    except UsageError:
        return []
    return [(str(number), sanitise_name(text.partition("\n")[0][:_EXCERPT])) for number, text in enumerate(blocks, 1)]


def _complete_copy(context: CommandContext, typed: str) -> Iterable[Suggestion]:
    return match_suggestions(typed, ((f"code {number}", line) for number, line in _block_choices(context)))


def _complete_write(context: CommandContext, typed: str) -> Iterable[Suggestion]:
    number, blank, name = typed.partition(" ")
    return complete_path(name) if blank and number.isdecimal() else match_suggestions(typed, _block_choices(context))


def _complete_raw(context: CommandContext, typed: str) -> Iterable[Suggestion]:
    return match_suggestions(typed, (("on", "show replies as plain text"), ("off", "render replies as Markdown")))


COMMANDS: tuple[ChatCommand, ...] = (
    ChatCommand(
        "raw",
        "[on|off]",
        "show the last reply as plain text (on: all replies)",
        _raw,
        details="Control characters are shown, never executed.\n"
        "`qwchat config set render plain` makes /raw on the default.",
        complete=_complete_raw,
    ),
    ChatCommand(
        "think",
        "[show|fold|hide|off]",
        "show the thought of the last reply, or set how to show them",
        _think,
        details="fold shows the last rows while the model thinks, then one line. show keeps the whole thought, hide\n"
        "shows nothing of it. off asks the model to answer without a thought, which some models cannot.",
        complete=_complete_think,
    ),
    ChatCommand("stats", "", "show tokens and speed of all replies together", _stats),
    ChatCommand(
        "copy",
        "[code N]",
        "copy the last reply, or one of its code blocks",
        _copy,
        details="Each block shows its number; if there is only one, /copy code is enough. The text goes to the\n"
        "clipboard through the terminal (OSC 52), also over ssh. Most terminals accept it, some only if configured.",
        complete=_complete_copy,
    ),
    ChatCommand(
        "write",
        "[N] FILE",
        "write a code block of the last reply to a file",
        _write,
        details="/write 2 fix.py writes the second block verbatim. It overwrites only files that this chat wrote.",
        complete=_complete_write,
    ),
)
