"""The only place where tests look at a clock: to give up on what hangs, and to compare two costs of the same moment.

Nothing here returns seconds: a machine may be slow, busy or stopped for a while, and no test may depend on that.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

PATIENCE_SECONDS = 120.0
"""How long to wait for something that never comes on a working program; far more than a slow machine needs."""


def wait_for(reached: Callable[[], object], what: str, pause: float = 0.002) -> None:
    """Ask `reached`, with `pause` seconds between, until it returns something true.

    Raises AssertionError if that does not happen.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while not reached():
        if time.monotonic() > end:
            raise AssertionError(f"waited in vain for {what}")
        if pause:
            time.sleep(pause)


def count_sleeps(pid: int) -> int:
    """Return how often a process has begun to wait: one more when a signal has woken it and it waits again.

    Where the system does not show its processes, the number grows with time.
    """
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return int(2 * time.monotonic())
    lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
    return int(lines["voluntary_ctxt_switches"])


def cost_ratio(work: Callable[[], object], other: Callable[[], object], rounds: int = 2) -> float:
    """Return how many times as much processor time of this thread `work` takes as `other`.

    Both run in turn, and the least of each counts, so that a busy moment falls on both or on neither.
    """
    costs = [(_cost(work), _cost(other)) for _ in range(rounds)]
    return min(cost for cost, _ in costs) / max(min(cost for _, cost in costs), 1e-6)


def cost_growth(work: Callable[[int], object], small: int, factor: int) -> float:
    """Return how many times as much processor time `work(factor * small)` takes as `work(small)`.

    Work that grows evenly gives about `factor`, and work that grows with the square gives the square of `factor`.
    """
    return cost_ratio(lambda: work(factor * small), lambda: work(small))


def cpu_share(work: Callable[[], object]) -> float:
    """Return the processor time of all threads while `work` runs, as a share of what a busy loop gets for as long."""
    began, used = time.monotonic(), time.process_time()
    work()
    end, used = time.monotonic() + time.monotonic() - began, time.process_time() - used
    spun = time.process_time()
    while time.monotonic() < end:
        pass
    return used / max(time.process_time() - spun, 1e-6)


def calls(work: Callable[[], object]) -> int:
    """Return the number of functions that `work` calls in this thread, Python's own among them."""
    count = 0

    def see(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def _cost(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start
