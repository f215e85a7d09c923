"""Messages in triple quotes, and messages that could be mistaken for commands."""

from __future__ import annotations

import re

QUOTES = '"""'

_EXIT_WORDS = ("exit", "quit")
_COMMAND_LIKE = re.compile(r"\s*(/[A-Za-z][A-Za-z-]*(\s|$)|//)")


def is_block_open(text: str) -> bool:
    """Return True if `text` begins a triple-quoted block that has not ended, so that Enter adds a line."""
    return text.startswith(QUOTES) and block_content(text) is None


def block_content(text: str) -> str | None:
    """Return the text inside the triple quotes around `text`, or None if it has no such quotes."""
    stripped = text.rstrip()
    if not (stripped.startswith(QUOTES) and stripped.endswith(QUOTES) and len(stripped) >= 2 * len(QUOTES)):
        return None
    return stripped[len(QUOTES) : -len(QUOTES)].removeprefix("\n").removesuffix("\n")


def looks_like_command(text: str) -> bool:
    """Return True if `text` may be a command, or begins with `//`, which stands for one slash."""
    return _COMMAND_LIKE.match(text) is not None


def is_exit_word(text: str) -> bool:
    """Return True if `text` is a single word that ends the chat, as in a shell."""
    return text.rstrip() in _EXIT_WORDS


def escape_message(text: str) -> str:
    """Return `text` escaped so that the chat takes it for a message: a command's slash becomes `//`."""
    if is_exit_word(text):
        return f" {text}"
    return "/" + text.lstrip() if looks_like_command(text) else text
