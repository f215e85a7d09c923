"""Protocols of the screen, which keep the chat's logic independent of a terminal, and the layouts it hands over."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from qwchat.events import Prefilled

Rendering = Literal["plain", "markdown"]


@dataclass(frozen=True)
class Table:
    """Rows under column heads. `right` holds the numbers of the right-aligned columns."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Collection[int] = ()


@dataclass(frozen=True)
class KeyValues:
    """Names and values, one pair per line."""

    pairs: Sequence[tuple[str, str]]


class Notices(Protocol):
    """Lines beside the replies; implemented by `qwchat.chat.view.screen.Screen`."""

    def notice(self, text: str) -> None:
        """Show information that needs no action."""

    def hint(self, text: str) -> None:
        """Show advice, or the response to a key."""

    def mark(self, text: str) -> None:
        """Mark the place from which the model receives less of the conversation."""


class ReplyDisplay(Protocol):
    """Where replies are shown; implemented by `qwchat.chat.view.reply.ReplyView`."""

    @property
    def is_terminal(self) -> bool:
        """Whether replies go to a terminal, where one can be shown again."""

    def set_rendering(self, rendering: Rendering) -> None:
        """Render replies in this way, starting with the next one."""

    def resume(self, shown_text: str) -> None:
        """Announce that the next reply continues `shown_text`, which is already on the screen."""

    def write(self, text: str) -> None:
        """Show the next piece of the reply."""

    def end(self, whole: str | None = None) -> None:
        """End the reply; `whole` is its text if it differs from what was written."""

    def code_blocks(self, text: str) -> list[str]:
        """Return the contents of the fenced code blocks in `text`, in the order of their numbers on the screen."""

    def copy(self, text: str) -> bool:
        """Copy `text` to the clipboard. Return False if no clipboard can be reached."""

    def copy_advice(self, text: str) -> str:
        """Return what may keep the clipboard from accepting `text`; empty if no obstacle is known."""


class ThoughtDisplay(Protocol):
    """Where thoughts are shown; implemented by `qwchat.chat.view.thoughts.ThoughtView`."""

    def write(self, text: str, tokens: int) -> None:
        """Show the next piece of the thought, of that many tokens."""

    def end(self, *, stopped: bool = False) -> None:
        """End the thought, if there is one; `stopped`: the user stopped the reply within it."""


class PrefillProgress(Protocol):
    """Progress of the prefill; implemented by `qwchat.chat.view.prefill_status.PrefillStatus`."""

    def start(self) -> None:
        """Start with a new prompt."""

    def update(self, event: Prefilled) -> None:
        """Show how much of the prompt is evaluated."""

    def stopping(self) -> None:
        """Show that the reply is being stopped."""

    def clear(self) -> None:
        """Erase the progress."""
