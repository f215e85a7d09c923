"""A persistent team of threads that runs one compiled program together.

:mod:`qwchat.cpu.kernels.scheduler` is its compiled side.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LINE_BYTES = 64  # bytes of a cache line, the unit of the team's memory
HEADER_LINES = 7  # before the members' own fields
CANCEL_WORD = 6 * LINE_BYTES  # offset of the stop word: while it is not 0, members skip all items of the step
POLL_SECONDS = 0.05  # between two questions to `cancelled`; signal handlers run at least as often
MEMBER_BYTES = 5 * LINE_BYTES

RUN, PARK, STOP = 0, 1, 2  # what a member that waited for a step is to do


class EntryPoints(NamedTuple):
    """The compiled functions that a team calls, each without the GIL.  `team` is the address of its memory.

    `lead(team, size, *arguments)`: one step as member 0.
    `serve(team, member, size, *arguments)`: takes part in steps until there is none for a while (PARK) or never
    again (STOP), and says which.
    `wake(team, active, parked_flags)`, `announce_end(team)`: see :mod:`qwchat.cpu.kernels.scheduler`.
    """

    lead: Callable[..., Any]
    serve: Callable[..., int]
    wake: Callable[[int, int, int], int]
    announce_end: Callable[[int], Any]


class ThreadTeam:
    """`size` members that run `entry_points` with `arguments`; the calling thread is member 0."""

    def __init__(self, size: int, entry_points: EntryPoints, arguments: tuple[Any, ...]):
        self.size = size
        self._entry_points, self._arguments = entry_points, arguments
        self._memory = np.zeros((HEADER_LINES + 1) * LINE_BYTES + size * MEMBER_BYTES, np.uint8)
        start = self._memory.ctypes.data
        self.address = start + -start % LINE_BYTES
        offset = -start % LINE_BYTES + CANCEL_WORD
        self._cancel_word = self._memory[offset : offset + 8].view(np.int64)
        self._parked_flags = np.zeros(size, np.int64)
        self._semaphores = [threading.Semaphore(0) for _ in range(size)]
        self._threads = [
            threading.Thread(target=self._serve_steps, args=(member,), name=f"qwchat-{member}", daemon=True)
            for member in range(1, size)
        ]
        for thread in self._threads:
            thread.start()
        self._leader: threading.Thread | None = None
        self._requested_steps = self._led_steps = 0  # steps that the leader's thread has to lead, and has led
        self._step_requested, self._step_finished = threading.Lock(), threading.Lock()
        self._step_requested.acquire()
        self._step_finished.acquire()

    def _serve_steps(self, member: int) -> None:
        while True:
            outcome = self._entry_points.serve(self.address, member, self.size, *self._arguments)
            if outcome == STOP:
                return
            self._semaphores[member].acquire()

    def _wake_members(self, active: int) -> None:
        if self.size > 1 and self._entry_points.wake(self.address, active, self._parked_flags.ctypes.data):
            for member in np.flatnonzero(self._parked_flags[:active]):
                self._semaphores[member].release()

    def run(self, active: int | None = None) -> None:
        """One step by the first `active` members, by default all; returns when all its work is done.

        A KeyboardInterrupt comes before the step or after it, never within: the leader announces the step in
        compiled code.
        """
        self.finish()
        self._cancel_word[0] = 0
        self._wake_members(active or self.size)
        self._entry_points.lead(self.address, self.size, *self._arguments)

    def run_cancellable(self, cancelled: Callable[[], bool], active: int | None = None) -> bool:
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
        self._cancel_word[0] = 0
        self._wake_members(active or self.size)
        error: BaseException | None = None
        self._requested_steps += 1
        while self._led_steps != self._requested_steps:
            try:
                _notify(self._step_requested)
                if not self._cancel_word[0] and cancelled():
                    self._cancel_word[0] = 1
                self._step_finished.acquire(timeout=POLL_SECONDS)
            except BaseException as raised:  # noqa: BLE001 It is raised below.
                self._cancel_word[0] = 1
                error = raised
        if error is not None:
            raise error
        return not self._cancel_word[0]

    def _lead(self) -> None:
        while True:
            self._step_requested.acquire()
            if self._leader is None:
                return
            if self._led_steps != self._requested_steps:
                self._entry_points.lead(self.address, self.size, *self._arguments)
                self._led_steps += 1
            _notify(self._step_finished)

    def finish(self) -> None:
        """Wait for a step that run_cancellable() left behind, should a signal have come outside of its `try`."""
        while self._led_steps != self._requested_steps:
            self._cancel_word[0] = 1
            _notify(self._step_requested)
            self._step_finished.acquire(timeout=POLL_SECONDS)

    def close(self) -> None:
        """Ends the threads."""
        self.finish()
        if self._leader is not None:
            leader, self._leader = self._leader, None
            _notify(self._step_requested)
            leader.join()
        # In this order: a member that parks looks for the announcement after it has become wakeable.
        self._entry_points.announce_end(self.address)
        self._wake_members(self.size)
        for thread in self._threads:
            thread.join()
        self._threads = []


def _notify(event: threading.Lock) -> None:
    """Wake the thread that acquires `event`, or the next one that does; notifying twice is the same as once."""
    with contextlib.suppress(RuntimeError):  # It is released already.
        event.release()
