"""How many threads a team should have: physical cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")


def _allowed() -> set[int]:
    try:
        return set(os.sched_getaffinity(0))
    except AttributeError:  # no affinity on this system
        return set(range(os.cpu_count() or 1))


def _physical(cpus: set[int]) -> int:
    """Distinct cores among ``cpus``: hyper-threads of one core share its multipliers and its cache."""
    siblings = set()
    for cpu in cpus:
        try:
            siblings.add((_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip())
        except OSError:
            return len(cpus)
    return len(siblings)


def _quota() -> float:
    """CPUs that the control group grants (version 2, then 1); infinite without a limit."""
    try:
        limit, length = (_CGROUP / "cpu.max").read_text().split()
        return math.inf if limit == "max" else int(limit) / int(length)
    except (OSError, ValueError):
        pass
    try:
        quota, period = (int((_CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else math.inf
    except (OSError, ValueError):
        return math.inf


def default_threads() -> int:
    """At least 1; physical cores within the affinity mask and the control group's quota."""
    cores = _physical(_allowed())
    quota = _quota()
    return max(1, cores if math.isinf(quota) else min(cores, math.ceil(quota)))
