"""What the editor uses of prompt-toolkit beyond its reference: private names, and modules that it does not describe.

Nothing else imports them, and tests/test_prompt_toolkit.py checks that they do what is taken for granted here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prompt_toolkit.application import Application, get_app
from prompt_toolkit.history import History
from prompt_toolkit.input import Input
from prompt_toolkit.input.ansi_escape_sequences import ANSI_SEQUENCES
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys
from prompt_toolkit.utils import get_cwidth


def map_sequences(sequences: Iterable[str], key: Keys) -> None:
    """Let every prompt of the process read the escape `sequences` as `key`."""
    for sequence in sequences:
        ANSI_SEQUENCES[sequence] = key


def take_typed_ahead(source: Input) -> list[KeyPress]:
    """Return the keys of `source` that wait for the next prompt, which no longer wait."""
    return get_typeahead(source)


def type_ahead(source: Input, keys: list[KeyPress]) -> None:
    """Let `keys` wait for the next prompt of `source`, behind those that wait already."""
    store_typeahead(source, keys)


def has_pending_keys() -> bool:
    """Return whether further keys have been read that no binding has seen."""
    return bool(get_app().key_processor.input_queue)


def add_to_history(history: History, text: str) -> None:
    """Make `text` the newest entry of `history` without storing it."""
    history._loaded_strings.insert(0, text)


def expect_no_cursor_reports(application: Application[Any]) -> None:
    """Do not warn that the terminal does not answer where its cursor is."""
    application.renderer.cpr_not_supported_callback = None


def exit_with(application: Application[Any], error: type[BaseException]) -> None:
    """Let `application.run` raise `error`, if it runs and has not ended already."""
    if application.future is not None and not application.future.done():
        application.exit(exception=error)


def cell_width(text: str) -> int:
    """Return how many columns prompt-toolkit takes `text` to fill."""
    return get_cwidth(text)
