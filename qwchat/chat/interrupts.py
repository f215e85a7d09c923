"""Keys that stop a reply: first a request, then KeyboardInterrupt."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import FrameType, TracebackType
from typing import Literal

DOUBLE_PRESS_SECONDS = 1.0
"""Ctrl-C again within so long means the whole program."""

TERMINATION_SIGNALS = (signal.SIGHUP, signal.SIGTERM)
"""Signals that end the process: the terminal is closed, or another process asks it to end."""

StopKey = Literal["escape", "interrupt"]
"""A key that stops a reply: a lone Esc, or Ctrl-C where it came as a key and not as a signal."""

KeyWatcher = Callable[[], AbstractContextManager[Callable[[], StopKey | None]]]
"""Entered for the time of a reply; gives a function that says at once which key asks to stop it, if any."""


@contextmanager
def no_keys() -> Iterator[Callable[[], StopKey | None]]:
    """Watching no keyboard: signals alone stop a reply."""
    yield lambda: None


class Interrupts:
    """What stops a reply, entered for the time of each.

    The first Ctrl-C or Esc only makes `stop_requested()` true, which the engine asks between tokens and chunks of
    the prompt, so that its cache stays consistent and the reply ends with its text and figures. Ctrl-C after a request
    that was not heard yet raises KeyboardInterrupt at once, should a chunk take long or a write block.

    Ctrl-C twice within a second sets `leaving`, at the prompt (`note_ctrl_c`) as in a reply. A chat is to end then,
    but only once everything is kept: where it passes `watching`, the second one of the two raises nothing. The end of
    the terminal and a polite kill (SIGHUP, SIGTERM) do the same to a chat.

    Attributes:
        leaving: whether the person wants to leave.
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
        # A request that came just before, while the prompt was rendered, holds.
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
        """For the time of a command, and of saving: one Ctrl-C, which came too late for the reply, breaks nothing off.

        Replies may be played within. Ctrl-C again raises KeyboardInterrupt, unless it sets `leaving`.
        """
        with ExitStack() as stack:
            if threading.current_thread() is threading.main_thread():
                stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, self._on_sigint))
            self._requested = False
            yield

    def stop_requested(self) -> bool:
        """Whether the reply is to stop. Takes microseconds."""
        if not self._requested:
            key = self._poll()
            if key == "interrupt":
                self.note_ctrl_c()
            if key is not None:
                self._requested = True
        return self._requested

    def note_ctrl_c(self) -> bool:
        """Note a Ctrl-C; whether it was the second within a second."""
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
