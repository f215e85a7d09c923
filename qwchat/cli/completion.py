"""Shell completion of names that are looked up when the shell asks.

The shell's script calls qwchat with `VARIABLE` set, and Typer answers. `qwchat.cli.app` prints the script.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

VARIABLE = "_QWCHAT_COMPLETE"
_UNQUOTABLE = frozenset("\\'\"")  # characters that Typer's scripts cannot pass on
_NEEDS_BACKSLASH = re.compile(r"[^\w@%+:,./=-]")


def models(incomplete: str) -> list[tuple[str, str]]:
    """Return models on this machine and GGUF files of the working folder. The shell completes longer paths itself."""
    from quant.gguf_names import gguf_models
    from qwchat import models_folder

    def list_pairs() -> Iterable[tuple[str, str]]:
        names = set()
        for model in models_folder.available():
            state = "built in" if model.embedded else "converted" if model.converted else model.kind
            names.add(model.name)
            yield model.name, state
        for path in gguf_models(Path()):
            if path.name not in names:
                yield path.name, "GGUF file"

    return _matching(incomplete, list_pairs)


def catalogue(incomplete: str) -> list[tuple[str, str]]:
    """Return the names of the catalogue, as the shell offers them."""
    from qwchat.store.catalogue import entries

    return _matching(incomplete, lambda: [(entry.name, entry.repository) for entry in entries()])


def cards(incomplete: str) -> list[tuple[str, str]]:
    """Return the common cards for the shell."""
    from quant.units import data_size
    from qwchat.store.cards import common_cards

    return _matching(incomplete, lambda: [(card.name, data_size(card.memory)) for card in common_cards()])


def sessions(incomplete: str) -> list[tuple[str, str]]:
    """Return saved sessions, by name or id, for the shell."""
    from qwchat.conversation.session_store import SessionStore
    from qwchat.errors import SessionError

    try:
        entries = SessionStore().entries()
    except SessionError:
        return []
    return _matching(incomplete, lambda: ((entry.name or entry.id, entry.title) for entry in entries))


def personas(incomplete: str) -> list[tuple[str, str]]:
    """Return the user's personas for the shell."""
    from qwchat.settings import personas as persona_files

    return _matching(incomplete, lambda: ((name, "") for name in persona_files.names()))


def _matching(incomplete: str, list_pairs: Callable[[], Iterable[tuple[str, str]]]) -> list[tuple[str, str]]:
    """Return the pairs whose name begins with `incomplete`.

    A failure gives an empty list, because a shell cannot show an error. Names and titles are not trustworthy: names
    that the shell would not take as one word are left out.
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
    """Return `name` with backslashes for bash, which inserts it verbatim, unless it is being quoted."""
    if os.environ.get(VARIABLE) != "complete_bash":
        return name
    words, number = os.environ.get("COMP_WORDS", "").split("\n"), int(os.environ.get("COMP_CWORD", "0"))
    quoted = words[number : number + 1] and words[number].startswith(("'", '"'))
    return name if quoted else _NEEDS_BACKSLASH.sub(r"\\\g<0>", name)


def _escaped_description(text: str) -> str:
    """Return `text` safe for Typer, which reads Rich markup, and for zsh, which expands backslashes."""
    from rich.markup import escape

    return escape(text.replace("\\", ""))
