"""Ctrl-C: a polite request while the engine works, KeyboardInterrupt everywhere else."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """Installs a handler of SIGINT for the time of one reply.

    Inside ``engine()`` the first Ctrl-C only sets ``requested()``, which the engine asks between tokens and between
    chunks of the prompt, so that its cache stays consistent and the reply ends with its figures. A second Ctrl-C, and
    any outside ``engine()`` (a write that blocks, say), raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self._requested = False
        self._in_engine = False
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

    @contextmanager
    def engine(self) -> Iterator[None]:
        """The time in which the engine works."""
        self._in_engine = True
        try:
            yield
        finally:
            self._in_engine = False

    def _handle(self, signal_number: int, frame: FrameType | None) -> None:
        again, self._requested = self._requested, True
        if again or not self._in_engine:
            raise KeyboardInterrupt
