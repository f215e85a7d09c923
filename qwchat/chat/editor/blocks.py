"""Messages in triple quotes, and texts that would be taken for commands."""

from __future__ import annotations

import re

QUOTES = '"""'

_LIKE_A_COMMAND = re.compile(r"\s*(/[A-Za-z][A-Za-z-]*(\s|$)|//)")


def is_open(text: str) -> bool:
    """Whether ``text`` begins a block of triple quotes that does not end yet, so that Enter breaks the line."""
    return text.startswith(QUOTES) and inside(text) is None


def inside(text: str) -> str | None:
    """What stands between the triple quotes around ``text``, without the line breaks next to them; else None."""
    whole = text.rstrip()
    if not (whole.startswith(QUOTES) and whole.endswith(QUOTES) and len(whole) >= 2 * len(QUOTES)):
        return None
    return whole[len(QUOTES) : -len(QUOTES)].removeprefix("\n").removesuffix("\n")


def like_a_command(text: str) -> bool:
    """Whether ``text`` may be a command, or begins with the ``//`` that stands for one slash."""
    return _LIKE_A_COMMAND.match(text) is not None


def as_message(text: str) -> str:
    """``text`` written so that the chat takes it for a message: ``//`` in place of a command's slash."""
    return "/" + text.lstrip() if like_a_command(text) else text
