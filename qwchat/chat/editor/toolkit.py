"""Private names and undocumented modules of prompt-toolkit that the editor uses.

Only this module imports them. tests/test_prompt_toolkit.py checks that they behave as assumed here.
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
    """Make every prompt of the process read the escape `sequences` as `key`."""
    for sequence in sequences:
        ANSI_SEQUENCES[sequence] = key


def take_typed_ahead(source: Input) -> list[KeyPress]:
    """Remove and return the keys of `source` that wait for the next prompt."""
    return get_typeahead(source)


def type_ahead(source: Input, keys: list[KeyPress]) -> None:
    """Make `keys` wait for the next prompt of `source`, after those that already wait."""
    store_typeahead(source, keys)


def has_pending_keys() -> bool:
    """Return True if keys have been read that no binding has handled."""
    return bool(get_app().key_processor.input_queue)


def add_to_history(history: History, text: str) -> None:
    """Make `text` the newest entry of `history` without storing it."""
    history._loaded_strings.insert(0, text)


def expect_no_cursor_reports(application: Application[Any]) -> None:
    """Suppress the warning about a terminal that does not report its cursor position."""
    application.renderer.cpr_not_supported_callback = None


def exit_with(application: Application[Any], error: type[BaseException]) -> None:
    """Make `application.run` raise `error`, if it is running."""
    if application.future is not None and not application.future.done():
        application.exit(exception=error)


def cell_width(text: str) -> int:
    """Return the number of columns that prompt-toolkit uses for `text`."""
    return get_cwidth(text)
