"""Interrupting a reply: the first key press requests a stop, the next raises KeyboardInterrupt."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import FrameType, TracebackType
from typing import Literal

DOUBLE_PRESS_SECONDS = 1.0
"""Two presses of Ctrl-C within this time end the chat."""

TERMINATION_SIGNALS = (signal.SIGHUP, signal.SIGTERM)
"""Signals that end the process: SIGHUP when the terminal closes, SIGTERM from another process."""

StopKey = Literal["escape", "interrupt"]
"""A key that stops a reply: a lone Esc, or Ctrl-C if it arrives as a key instead of a signal."""

KeyWatcher = Callable[[], AbstractContextManager[Callable[[], StopKey | None]]]
"""Context manager for the time of a reply. Gives a function that polls the keyboard for a key that stops it."""


@contextmanager
def no_keys() -> Iterator[Callable[[], StopKey | None]]:
    """Watch no keyboard, so that only signals stop a reply."""
    yield lambda: None


class Interrupts:
    """Interrupts of one reply at a time; a context manager, entered for each reply.

    The first Ctrl-C or Esc makes `stop_requested()` true. The engine asks for it between tokens and between chunks of
    the prompt, so its cache stays consistent and the reply ends with its text and figures. If a long chunk or a blocked
    write delays the engine, a second Ctrl-C raises KeyboardInterrupt.

    Ctrl-C twice within a second sets `leaving`, both at the prompt (`note_ctrl_c`) and during a reply. A chat must then
    end as soon as everything is saved, so a chat, which passes `watching`, gets no KeyboardInterrupt for the second
    press. SIGHUP and SIGTERM have the same effect on a chat.

    Attributes:
        leaving: whether the user wants to leave.
    """

    def __init__(self, watching: KeyWatcher | None = None) -> None:
        self._defers_exit = watching is not None
        self._watching = watching or no_keys
        self._requested = False
        self._last_ctrl_c = float("-inf")
        self._poll: Callable[[], StopKey | None] = lambda: None
        self._stack = ExitStack()
        self.leaving = False

    def __enter__(self) -> Interrupts:
        # A request made while the prompt was rendered stays in effect, so `_requested` is not reset here.
        with ExitStack() as stack:
            if threading.current_thread() is threading.main_thread():
                stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, self._on_sigint))
                for number in TERMINATION_SIGNALS if self._defers_exit else ():
                    stack.callback(signal.signal, number, signal.signal(number, self._on_termination))
            self._poll = stack.enter_context(self._watching())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._requested = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer Ctrl-C while a command runs or a turn is saved, so that a late press interrupts neither.

        Replies may be generated within. A second Ctrl-C raises KeyboardInterrupt unless it sets `leaving`.
        """
        with ExitStack() as stack:
            if threading.current_thread() is threading.main_thread():
                stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, self._on_sigint))
            self._requested = False
            yield

    def stop_requested(self) -> bool:
        """Return whether the reply should stop. Takes microseconds."""
        if not self._requested:
            key = self._poll()
            if key == "interrupt":
                self.note_ctrl_c()
            if key is not None:
                self._requested = True
        return self._requested

    def note_ctrl_c(self) -> bool:
        """Note a press of Ctrl-C. Return whether the user wants to leave."""
        now = time.monotonic()
        if now - self._last_ctrl_c < DOUBLE_PRESS_SECONDS:
            self.leaving = True
        self._last_ctrl_c = now
        return self.leaving

    def _on_termination(self, signal_number: int, frame: FrameType | None) -> None:
        if self.leaving:
            raise KeyboardInterrupt
        self._requested = self.leaving = True

    def _on_sigint(self, signal_number: int, frame: FrameType | None) -> None:
        was_requested, self._requested = self._requested, True
        second = not self.leaving and self.note_ctrl_c()
        if was_requested and not (second and self._defers_exit):
            raise KeyboardInterrupt
