"""Ctrl-C during a reply: first a request, then KeyboardInterrupt."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """Handles SIGINT for the time of one reply.

    The first Ctrl-C only sets ``requested()``, which the engine asks between tokens and between chunks of the prompt,
    so that its cache stays consistent and the reply ends with its text and figures. A second one raises
    KeyboardInterrupt at once, should a chunk take long or a write block.
    """

    def __init__(self) -> None:
        self._requested = False
        self._previous: Any = None
        self._installed = False

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._previous)
            self._installed = False

    def requested(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._requested

    def _handle(self, signal_number: int, frame: FrameType | None) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
