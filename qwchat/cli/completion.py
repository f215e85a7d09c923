"""Shell completion: the names that are looked up when a shell asks what may follow.

The shell's script calls qwchat with `VARIABLE` set, and Typer answers it. `qwchat.cli.app` prints the script.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable

VARIABLE = "_QWCHAT_COMPLETE"
_UNQUOTABLE = frozenset("\\'\"")  # of names: no script of Typer's brings them through
_NEEDS_BACKSLASH = re.compile(r"[^\w@%+:,./=-]")


def models(incomplete: str) -> list[tuple[str, str]]:
    """Models on this machine, as the shell offers them."""
    from qwchat import models_folder

    def list_pairs() -> Iterable[tuple[str, str]]:
        for model in models_folder.available():
            state = "built in" if model.embedded else "converted" if model.converted else "checkpoint"
            yield model.name, state

    return _matching(incomplete, list_pairs)


def sessions(incomplete: str) -> list[tuple[str, str]]:
    """Saved conversations by name or id, as the shell offers them."""
    from qwchat.conversation.session_store import SessionStore
    from qwchat.errors import SessionError

    try:
        entries = SessionStore().entries()
    except SessionError:
        return []
    return _matching(incomplete, lambda: ((entry.name or entry.id, entry.title) for entry in entries))


def personas(incomplete: str) -> list[tuple[str, str]]:
    """Personas of this person, as the shell offers them."""
    from qwchat.settings import personas as persona_files

    return _matching(incomplete, lambda: ((name, "") for name in persona_files.names()))


def _matching(incomplete: str, list_pairs: Callable[[], Iterable[tuple[str, str]]]) -> list[tuple[str, str]]:
    """Those that begin with `incomplete`; none where looking fails, since a shell has no place for a complaint.

    Names and titles came from who knows where. What a shell would not take as one word is not offered.
    """
    try:
        pairs = [pair for pair in list_pairs() if pair[0].startswith(incomplete)]
    except OSError:
        return []
    return [
        (_quoted_for_shell(name), _escaped_description(text))
        for name, text in pairs
        if name.isprintable() and not _UNQUOTABLE & {*name}
    ]


def _quoted_for_shell(name: str) -> str:
    """`name` as the shell is to insert it: bash takes it as it is, so blanks need backslashes outside of quotes."""
    if os.environ.get(VARIABLE) != "complete_bash":
        return name
    words, number = os.environ.get("COMP_WORDS", "").split("\n"), int(os.environ.get("COMP_CWORD", "0"))
    quoted = words[number : number + 1] and words[number].startswith(("'", '"'))
    return name if quoted else _NEEDS_BACKSLASH.sub(r"\\\g<0>", name)


def _escaped_description(text: str) -> str:
    """`text` as Typer shows it as it is: it takes it for Rich's markup, and zsh runs what a backslash brings out."""
    from rich.markup import escape

    return escape(text.replace("\\", ""))
