"""Choose the number of threads: for the team as a whole, and for decoding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from quant.machine import usable_processors

_CPUS = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")

_WARM_UP, _TRIALS = 2, 3  # steps before the first trial, and per number of threads
# Trials are repeated after this many steps: the context has grown, and the machine may be less busy.
_STEPS_BETWEEN_TRIALS = 1024
_TOLERANCE = 1.03  # half the threads may take this much longer per step and still be chosen


def _physical_cores(cpus: set[int]) -> int:
    """Return the number of physical cores among the logical processors `cpus`.

    Hyper-threads of one core share its multipliers and its cache, so a second one adds nothing. The slow cores of a
    hybrid processor count: work is handed out in small pieces, so they add what they have.
    """
    siblings = set()
    for cpu in cpus:
        try:
            siblings.add((_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip())
        except OSError:
            return len(cpus)
    return len(siblings)


def _control_groups() -> Iterator[Path]:
    """Yield folders that may limit this process: its control groups (versions 2 and 1) and all their parents.

    In a container the path may be that of the host. The limit is then in the root that the container sees, which is
    among the parents.
    """
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:
        lines = ["0::/", "1:cpu:/"]
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            roots = [_CGROUP, _CGROUP / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [_CGROUP / "cpu", _CGROUP / controllers]
        else:
            continue
        inner = Path(path.lstrip("/"))
        if ".." not in inner.parts:
            yield from (root / group for root in roots for group in (inner, *inner.parents))


def _quota(group: Path) -> float:
    """Return the CPUs that one control group grants; infinity if it sets no limit."""
    try:
        limit, length = (group / "cpu.max").read_text().split()
        return math.inf if limit == "max" else int(limit) / int(length)
    except (OSError, ValueError):
        pass
    try:
        quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else math.inf
    except (OSError, ValueError):
        return math.inf


def default_threads() -> int:
    """Return the default number of threads, at least 1.

    These are the physical cores in the affinity mask, but not more than the tightest CPU quota of the control groups.
    """
    cores = _physical_cores(usable_processors())
    quota = min((_quota(group) for group in _control_groups()), default=math.inf)
    return max(1, cores if math.isinf(quota) else min(cores, math.ceil(quota)))


class DecodeThreadTuner:
    """Finds the number of threads for steps of one token, which a few threads may run as fast as all.

    Decoding reads all weights once per token, and often a few threads saturate the memory (Ryzen 7950X: 4 of 16). The
    tuner alternates between the present number and half of it, and halves the number as long as that is not slower. It
    tries nothing with one or two threads.

    Args:
        size: threads of the team.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._restart()

    def _restart(self) -> None:
        self._count, self._searching, self._steps = self._size, self._size > 2, 0
        self._seconds: tuple[list[float], list[float]] = ([], [])

    def choose(self) -> int:
        """Return the number of threads for the next step."""
        trying = self._searching and self._steps >= _WARM_UP and self._steps % 2 == 1
        return self._count // 2 if trying else self._count

    def record(self, seconds: float) -> None:
        """Record the seconds of the step for which `choose` was called last."""
        if self._searching and self._steps >= _WARM_UP:
            self._seconds[self._steps % 2].append(seconds)
            if len(self._seconds[1]) == _TRIALS:
                present, half = (median(values) for values in self._seconds)
                self._searching = half <= _TOLERANCE * present and self._count >= 4
                self._count = self._count // 2 if half <= _TOLERANCE * present else self._count
                self._seconds = ([], [])
        self._steps += 1
        if self._steps >= _STEPS_BETWEEN_TRIALS and not self._searching:
            self._restart()
