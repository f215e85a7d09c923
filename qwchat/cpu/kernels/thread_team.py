"""A persistent team of threads that runs one compiled program together.

:mod:`qwchat.cpu.kernels.scheduler` is its compiled side.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LINE = 64  # bytes of a cache line, the unit of the team's memory
HEADER_LINES = 7  # before the members' own fields
CANCELLED = 6 * LINE  # offset of the stop word: while it is not 0, members skip all items of the step
POLL_SECONDS = 0.05  # between two questions to `cancelled`; signal handlers run at least as often
MEMBER_BYTES = 5 * LINE

RUN, PARK, STOP = 0, 1, 2  # what a member that waited for a step is to do


class EntryPoints(NamedTuple):
    """The compiled functions that a team calls, each without the GIL.  `team` is the address of its memory.

    `lead(team, size, *arguments)`: one step as member 0.
    `serve(team, member, size, *arguments)`: takes part in steps until there is none for a while (PARK) or never
    again (STOP), and says which.
    `rouse(team, active, asleep)`, `announce_end(team)`: see :mod:`qwchat.cpu.kernels.scheduler`.
    """

    lead: Callable[..., Any]
    serve: Callable[..., int]
    rouse: Callable[[int, int, int], int]
    announce_end: Callable[[int], Any]


class ThreadTeam:
    """`size` members that run `program` with `arguments`; the calling thread is member 0."""

    def __init__(self, size: int, program: EntryPoints, arguments: tuple[Any, ...]):
        self.size = size
        self._program, self._arguments = program, arguments
        self._memory = np.zeros((HEADER_LINES + 1) * LINE + size * MEMBER_BYTES, np.uint8)
        start = self._memory.ctypes.data
        self.address = start + -start % LINE
        offset = -start % LINE + CANCELLED
        self._stop_word = self._memory[offset : offset + 8].view(np.int64)
        self._asleep = np.zeros(size, np.int64)
        self._wake = [threading.Semaphore(0) for _ in range(size)]
        self._threads = [
            threading.Thread(target=self._work, args=(member,), name=f"qwchat-{member}", daemon=True)
            for member in range(1, size)
        ]
        for thread in self._threads:
            thread.start()
        self._leader: threading.Thread | None = None
        self._ordered = self._led = 0  # steps that the leader's thread has to lead, and has led
        self._go, self._done = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._done.acquire()

    def _work(self, member: int) -> None:
        while True:
            outcome = self._program.serve(self.address, member, self.size, *self._arguments)
            if outcome == STOP:
                return
            self._wake[member].acquire()

    def _rouse(self, active: int) -> None:
        if self.size > 1 and self._program.rouse(self.address, active, self._asleep.ctypes.data):
            for member in np.flatnonzero(self._asleep[:active]):
                self._wake[member].release()

    def run(self, active: int | None = None) -> None:
        """One step by the first `active` members, by default all; returns when all its work is done.

        A KeyboardInterrupt comes before the step or after it, never within: the leader announces the step in
        compiled code.
        """
        self.finish()
        self._stop_word[0] = 0
        self._rouse(active or self.size)
        self._program.lead(self.address, self.size, *self._arguments)

    def run_watched(self, cancelled: Callable[[], bool], active: int | None = None) -> bool:
        """Run one step that can be stopped. Return False if it was: some of its items were skipped then.

        Another thread is member 0, because Python runs signal handlers between two bytecodes of the main thread, and
        a compiled call is one. The calling thread waits, and asks `cancelled` at once and every POLL_SECONDS. An
        exception, from `cancelled` or from a signal handler (KeyboardInterrupt), also stops the step, and is raised
        when no member works on it any more.
        """
        self.finish()
        if self._leader is None:
            self._leader = threading.Thread(target=self._lead, name="qwchat-0", daemon=True)
            self._leader.start()
        self._stop_word[0] = 0
        self._rouse(active or self.size)
        error: BaseException | None = None
        self._ordered += 1
        while self._led != self._ordered:
            try:
                _notify(self._go)
                if not self._stop_word[0] and cancelled():
                    self._stop_word[0] = 1
                self._done.acquire(timeout=POLL_SECONDS)
            except BaseException as raised:  # noqa: BLE001 It is raised below.
                self._stop_word[0] = 1
                error = raised
        if error is not None:
            raise error
        return not self._stop_word[0]

    def _lead(self) -> None:
        while True:
            self._go.acquire()
            if self._leader is None:
                return
            if self._led != self._ordered:
                self._program.lead(self.address, self.size, *self._arguments)
                self._led += 1
            _notify(self._done)

    def finish(self) -> None:
        """Wait for a step that run_watched() left behind, should a signal have come outside of its `try`."""
        while self._led != self._ordered:
            self._stop_word[0] = 1
            _notify(self._go)
            self._done.acquire(timeout=POLL_SECONDS)

    def close(self) -> None:
        """Ends the threads."""
        self.finish()
        if self._leader is not None:
            leader, self._leader = self._leader, None
            _notify(self._go)
            leader.join()
        # In this order: a member that parks looks for the announcement after it has become wakeable.
        self._program.announce_end(self.address)
        self._rouse(self.size)
        for thread in self._threads:
            thread.join()
        self._threads = []


def _notify(event: threading.Lock) -> None:
    """Wake the thread that acquires `event`, or the next one that does; notifying twice is the same as once."""
    with contextlib.suppress(RuntimeError):  # It is released already.
        event.release()
