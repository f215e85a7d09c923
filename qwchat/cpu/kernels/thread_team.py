"""A persistent team of threads that runs one compiled program together.

Member 0 leads: it announces each step and works in it. The other members wait for steps in compiled code
(`qwchat.cpu.kernels.scheduler`) without the GIL: they spin, then yield, then park in Python on a semaphore.

A step runs the whole program once: for the decoder, one forward pass over a chunk of tokens.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LINE_BYTES = 64  # one cache line: the unit in which the team's memory is laid out
HEADER_LINES = 7  # cache lines before the members' fields
CANCEL_WORD = 6 * LINE_BYTES  # offset of a word that Python sets to cancel the step: members then skip all items
POLL_SECONDS = 0.05  # between two calls of `cancelled`; signal handlers run at least as often
MEMBER_BYTES = 5 * LINE_BYTES

RUN, PARK, STOP = 0, 1, 2  # outcomes of waiting for a step


class EntryPoints(NamedTuple):
    """Compiled functions that a team calls, all of them without the GIL.

    In each, `team` is the address of the team's memory, and `arguments` are those of the program.

    Attributes:
        lead: `lead(team, size, *arguments)` runs one step as member 0.
        serve: `serve(team, member, size, *arguments)` takes part in steps. It returns PARK when none has come for a
            while, and STOP when none will come any more.
        wake: `wake(team, active, parked_flags)` announces the number of active members and returns how many are parked.
        announce_end: `announce_end(team)` tells the members that no further step will come.
    """

    lead: Callable[..., Any]
    serve: Callable[..., int]
    wake: Callable[[int, int, int], int]
    announce_end: Callable[[int], Any]


class ThreadTeam:
    """Threads that run a compiled program step by step; the calling thread is member 0.

    Args:
        size: number of members, the calling thread included.
        entry_points: the compiled program.
        arguments: given to the program in every step.
    """

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
        self._requested_steps = self._led_steps = 0  # steps that the leader's thread must run, and has run
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
        """Run one step with the first `active` members, by default all; return when all its work is done.

        A KeyboardInterrupt is raised before the step or after it, never within: the step is announced in compiled code,
        where Python runs no signal handlers.
        """
        self.finish()
        self._cancel_word[0] = 0
        self._wake_members(active or self.size)
        self._entry_points.lead(self.address, self.size, *self._arguments)

    def run_cancellable(self, cancelled: Callable[[], bool], active: int | None = None) -> bool:
        """Run one step that can be cancelled.

        Another thread acts as member 0, because Python runs signal handlers only between bytecodes of the main thread,
        and a compiled call is a single bytecode. The calling thread waits, and calls `cancelled` at once and then every
        POLL_SECONDS. An exception from `cancelled` or from a signal handler (KeyboardInterrupt) cancels the step too,
        and is raised once no member works on it any longer.

        Args:
            cancelled: returns True to cancel the step.
            active: the number of members that work, by default all.

        Returns:
            False if the step was cancelled, so that some of its items were skipped.
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
            except BaseException as raised:  # noqa: BLE001 It is raised again below.
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
        """Wait for a step that `run_cancellable` left unfinished.

        That happens when a signal arrives outside of its `try`. Does nothing otherwise.
        """
        while self._led_steps != self._requested_steps:
            self._cancel_word[0] = 1
            _notify(self._step_requested)
            self._step_finished.acquire(timeout=POLL_SECONDS)

    def close(self) -> None:
        """End the threads."""
        self.finish()
        if self._leader is not None:
            leader, self._leader = self._leader, None
            _notify(self._step_requested)
            leader.join()
        # In this order: a member that parks checks for the announcement after it has marked itself as parked.
        self._entry_points.announce_end(self.address)
        self._wake_members(self.size)
        for thread in self._threads:
            thread.join()
        self._threads = []


def _notify(event: threading.Lock) -> None:
    """Wake the thread that waits for `event`, or else the next one that does; notifying twice has no further effect."""
    with contextlib.suppress(RuntimeError):  # It is already released.
        event.release()
