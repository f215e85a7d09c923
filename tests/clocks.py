"""The only module of the tests that reads a clock: to give up on hanging work, and to compare two costs.

Nothing here returns seconds: a machine may be slow, busy or suspended, and no test may depend on that.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

PATIENCE_SECONDS = 120.0
"""How long to wait before giving up; far more than a slow machine needs."""


def wait_for(reached: Callable[[], object], what: str, pause: float = 0.002) -> None:
    """Call `reached` until it returns something true, with `pause` seconds in between.

    Raises AssertionError if that does not happen.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while not reached():
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not happen in time")
        if pause:
            time.sleep(pause)


def count_sleeps(pid: int) -> int:
    """Return how often a process has begun to wait; a signal that wakes it adds one.

    On systems that do not show processes, the number grows with time.
    """
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return int(2 * time.monotonic())
    lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
    return int(lines["voluntary_ctxt_switches"])


def cost_ratio(work: Callable[[], object], other: Callable[[], object], rounds: int = 2) -> float:
    """Return the CPU time of `work` divided by that of `other`, in this thread.

    Both run in turn and the minimum of each counts, so that a busy moment affects both or neither.
    """
    costs = [(_cost(work), _cost(other)) for _ in range(rounds)]
    return min(cost for cost, _ in costs) / max(min(cost for _, cost in costs), 1e-6)


def cost_growth(work: Callable[[int], object], small: int, factor: int) -> float:
    """Return the CPU time of `work(factor * small)` divided by that of `work(small)`.

    Linear work gives about `factor`, quadratic work its square.
    """
    return cost_ratio(lambda: work(factor * small), lambda: work(small))


def cpu_share(work: Callable[[], object]) -> float:
    """Return the CPU time of all threads while `work` runs, as a share of what a busy loop gets in that time."""
    began, used = time.monotonic(), time.process_time()
    work()
    end, used = time.monotonic() + time.monotonic() - began, time.process_time() - used
    spun = time.process_time()
    while time.monotonic() < end:
        pass
    return used / max(time.process_time() - spun, 1e-6)


def calls(work: Callable[[], object]) -> int:
    """Return the number of functions that `work` calls in this thread, including Python's own."""
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
