"""A persistent team of threads that runs one compiled program together.

:mod:`qwchat.kernels.team` is its compiled side.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LINE = 64  # bytes of a cache line, the unit of the team's memory
HEADER_LINES = 6  # before the members' own fields
MEMBER_BYTES = 5 * LINE

RUN, PARK, STOP = 0, 1, 2  # what a member that waited for a step is to do


class Program(NamedTuple):
    """The compiled functions that a team calls, each without the GIL.  ``team`` is the address of its memory.

    ``lead(team, size, *arguments)``: one step as member 0.
    ``serve(team, member, size, *arguments)``: takes part in steps until there is none for a while (PARK) or never
    again (STOP), and says which.
    ``rouse(team, active, asleep)``, ``announce_end(team)``: see :mod:`qwchat.kernels.team`.
    """

    lead: Callable[..., Any]
    serve: Callable[..., int]
    rouse: Callable[[int, int, int], int]
    announce_end: Callable[[int], Any]


class Team:
    """``size`` members that run ``program`` with ``arguments``; the calling thread is member 0."""

    def __init__(self, size: int, program: Program, arguments: tuple[Any, ...]):
        self.size = size
        self._program, self._arguments = program, arguments
        self._memory = np.zeros((HEADER_LINES + 1) * LINE + size * MEMBER_BYTES, np.uint8)
        start = self._memory.ctypes.data
        self.address = start + -start % LINE
        self._asleep = np.zeros(size, np.int64)
        self._wake = [threading.Semaphore(0) for _ in range(size)]
        self._threads = [
            threading.Thread(target=self._work, args=(member,), name=f"qwchat-{member}", daemon=True)
            for member in range(1, size)
        ]
        for thread in self._threads:
            thread.start()

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
        """One step by the first ``active`` members, by default all; returns when all its work is done.

        A KeyboardInterrupt comes before the step or after it, never within: the leader announces the step in
        compiled code.
        """
        self._rouse(active or self.size)
        self._program.lead(self.address, self.size, *self._arguments)

    def close(self) -> None:
        """Ends the threads."""
        # In this order: a member that parks looks for the announcement after it has become wakeable.
        self._program.announce_end(self.address)
        self._rouse(self.size)
        for thread in self._threads:
            thread.join()
        self._threads = []
