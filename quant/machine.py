"""The processors of this machine."""

from __future__ import annotations

import os


def usable_processors() -> set[int]:
    """Return the ids of the processors (hardware threads) that this process may run on."""
    try:
        return set(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no processor affinity.
        return set(range(processor_count()))


def processor_count() -> int:
    """Return the number of processors (hardware threads) of the machine, at least 1."""
    return os.cpu_count() or 1
