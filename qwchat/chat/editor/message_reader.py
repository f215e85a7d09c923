"""Protocol of the readers that get messages from the user."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

from qwchat.chat.interrupts import StopKey
from qwchat.chat.suggestions import Suggestion

PROMPT = "> "
CONTINUATION = "  "

Suggest = Callable[[str], Iterable[Suggestion]]
"""Function that suggests how the text before the cursor may continue."""

EditingMode = Literal["emacs", "vi"]


class ThoughtKeys(Protocol):
    """What Ctrl-T does; implemented by `qwchat.chat.view.thoughts.ThoughtSwitch`."""

    def toggle(self) -> bool:
        """Show or fold the thought that is being generated. Return False if there is no such thought."""

    def last_rows(self, columns: int) -> Sequence[str]:
        """Return the thought of the last reply as rows of a terminal; an empty sequence without a thought."""


class MessageReader(Protocol):
    """Reader of one message after another."""

    def read(self, draft: str = "") -> str:
        """Return the next message. A message that looks like a command begins with `//`.

        Args:
            draft: Text that the message starts with.

        Raises:
            EOFError: At the end of the input.
            KeyboardInterrupt: On Ctrl-C.
        """

    def set_editing_mode(self, mode: EditingMode) -> None:
        """Use the keys of this editor from now on, if there is a line editor."""

    def ask(self, prompt: str) -> str:
        """Show `prompt` and return one line, which is not kept in the history. Raises the errors of `read`."""

    def watch_keys(self) -> AbstractContextManager[Callable[[], StopKey | None]]:
        """Keep keys for the next prompt, without echo, while a reply is generated.

        Yields a function that returns at once with the stop key pressed since its last call, or None.
        """
