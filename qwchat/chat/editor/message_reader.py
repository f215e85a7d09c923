"""What the chat asks of whatever reads a person's input."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Literal, Protocol

from qwchat.chat.interrupts import StopKey
from qwchat.chat.suggestions import Suggestion

PROMPT = "> "
CONTINUATION = "  "

Suggest = Callable[[str], Iterable[Suggestion]]
"""What may follow the text before the cursor."""

EditingMode = Literal["emacs", "vi"]


class MessageReader(Protocol):
    """Reads one message after another."""

    def read(self, draft: str = "") -> str:
        """The next message, which begins as `draft`; where it is no command but looks like one, with `//`.

        Raises EOFError at the end of the input, KeyboardInterrupt on Ctrl-C.
        """

    def set_editing_mode(self, mode: EditingMode) -> None:
        """Whose keys edit from now on, where there is an editor."""

    def ask(self, prompt: str) -> str:
        """One line behind `prompt`, which no history keeps. Raises what :meth:`read` raises."""

    def watch_keys(self) -> AbstractContextManager[Callable[[], StopKey | None]]:
        """Entered for the time of a reply: keys are not echoed and wait for the next prompt.

        Gives a function that returns at once: the stop key pressed since it was last called, if any.
        """
