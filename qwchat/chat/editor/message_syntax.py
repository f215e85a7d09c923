"""Messages in triple quotes, and texts that the chat would take for commands."""

from __future__ import annotations

import re

QUOTES = '"""'

_EXIT_WORDS = ("exit", "quit")
_COMMAND_LIKE = re.compile(r"\s*(/[A-Za-z][A-Za-z-]*(\s|$)|//)")


def is_block_open(text: str) -> bool:
    """Whether `text` begins a block of triple quotes that does not end yet, so that Enter breaks the line."""
    return text.startswith(QUOTES) and block_content(text) is None


def block_content(text: str) -> str | None:
    """What stands between the triple quotes around `text`, without the line breaks next to them; else None."""
    whole = text.rstrip()
    if not (whole.startswith(QUOTES) and whole.endswith(QUOTES) and len(whole) >= 2 * len(QUOTES)):
        return None
    return whole[len(QUOTES) : -len(QUOTES)].removeprefix("\n").removesuffix("\n")


def looks_like_command(text: str) -> bool:
    """Whether `text` may be a command, or begins with the `//` that stands for one slash."""
    return _COMMAND_LIKE.match(text) is not None


def is_exit_word(text: str) -> bool:
    """Return whether `text` is a word alone that leaves the chat, as in shells."""
    return text.rstrip() in _EXIT_WORDS


def escape_message(text: str) -> str:
    """Return `text` in a form that the chat takes for a message: `//` in place of a command's slash."""
    if is_exit_word(text):
        return f" {text}"
    return "/" + text.lstrip() if looks_like_command(text) else text
