"""What the chat asks of the screen, so that its logic knows no terminal, and what it gives the screen to lay out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from qwchat.events import Prefilled

Rendering = Literal["plain", "markdown"]


@dataclass(frozen=True)
class Table:
    """Rows under heads; the columns numbered in `right` are right-aligned."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Collection[int] = ()


@dataclass(frozen=True)
class KeyValues:
    """Names and values, one pair per line."""

    pairs: Sequence[tuple[str, str]]


class Notices(Protocol):
    """Lines beside the replies: `qwchat.chat.view.screen.Screen`."""

    def notice(self, text: str) -> None:
        """Show something worth knowing that needs no action."""

    def hint(self, text: str) -> None:
        """Show the answer to a key, or advice."""

    def mark(self, text: str) -> None:
        """Show a change of what is sent from here on."""


class ReplyDisplay(Protocol):
    """Where replies are shown: `qwchat.chat.view.reply.ReplyView`."""

    @property
    def is_terminal(self) -> bool:
        """Whether replies go to a terminal, where one can be shown again."""

    def set_rendering(self, rendering: Rendering) -> None:
        """Show replies in this way, from the next one on."""

    def resume(self, shown_text: str) -> None:
        """The next reply continues `shown_text`, which is on the screen already."""

    def write(self, text: str) -> None:
        """Show the next piece of the reply."""

    def end(self, whole: str | None = None) -> None:
        """End the reply; `whole`: its text, where that is not the sum of what was written."""

    def code_blocks(self, text: str) -> list[str]:
        """Return the contents of the fenced code blocks in `text`, in the order of their numbers on the screen."""

    def copy(self, text: str) -> bool:
        """Put `text` into the clipboard; return False if no clipboard can be reached."""

    def copy_advice(self, text: str) -> str:
        """Return what may keep the clipboard from taking `text`; empty where nothing is known to."""


class PrefillProgress(Protocol):
    """Progress through a long prompt: `qwchat.chat.view.prefill_status.PrefillStatus`."""

    def start(self) -> None:
        """Begin with a new prompt."""

    def update(self, event: Prefilled) -> None:
        """Show how far the prompt is evaluated."""

    def stopping(self) -> None:
        """Show that the reply is being stopped."""

    def clear(self) -> None:
        """Erase the progress."""
