"""Measure the limits of this machine: read bandwidth and int8 arithmetic.

`qwchat bench` and the benchmarks report speeds as shares of these limits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from quant.native.linker import callable_at, linked_addresses
from quant.native.simd_level import lanes
from qwchat.cpu.kernels.kernel_store import PROBE_CHAINS, PROBES, PROBES_PREFIX

READ_BYTES = 512 << 20  # larger than any cache of a laptop or of a share of a server
_READ_ROUNDS = 8
_ROUNDS = 10_000_000  # tens of milliseconds, so that the start of a thread does not matter


@cache
def _functions() -> dict[str, Callable[..., Any]]:
    """Return the two compiled loops by name; they take three and two integers."""
    arguments = {"read_memory": 3, "multiply_bytes": 2}
    addresses = linked_addresses(PROBES, [PROBES_PREFIX + name for name in arguments])
    if addresses is None:
        from qwchat.cpu.kernels.probe_loops import UNIT

        addresses = UNIT.compile_all(lambda: None, {}, None)
    return {name: callable_at(addresses[PROBES_PREFIX + name], count) for name, count in arguments.items()}


def _together(threads: int, work: Callable[[int], object]) -> float:
    """Return the seconds until `threads` threads have all run `work(member)`; the best of three trials."""
    best = float("inf")
    for _ in range(3):
        members = [threading.Thread(target=work, args=(member,)) for member in range(threads)]
        start = time.perf_counter()
        for member in members:
            member.start()
        for member in members:
            member.join()
        best = min(best, time.perf_counter() - start)
    return best


def read_bandwidth(threads: int) -> float:
    """Return the bytes per second that `threads` threads read from memory together."""
    data = np.ones(READ_BYTES, np.uint8)
    share = READ_BYTES // threads // 4096 * 4096
    start = data.ctypes.data
    read = _functions()["read_memory"]
    read(start, 4096, 1)
    seconds = _together(threads, lambda member: read(start + member * share, share, _READ_ROUNDS))
    return _READ_ROUNDS * share * threads / seconds


def int8_peak(threads: int) -> float:
    """Return the operations per second of int8 dot products in registers, with `threads` threads.

    A multiplication and an addition count as two operations.
    """
    multiply = _functions()["multiply_bytes"]
    multiply(1, 3)
    seconds = _together(threads, lambda member: multiply(_ROUNDS, 3 + 2 * member))
    return threads * _ROUNDS * PROBE_CHAINS * 4 * lanes() * 2 / seconds
