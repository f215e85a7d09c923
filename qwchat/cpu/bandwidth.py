"""A quick measurement of this machine's memory bandwidth, without kernels.

`qwchat.cpu.kernels.probe` measures the same with more rounds; the two agree within a few percent.
"""

from __future__ import annotations

import threading
import time

import numpy as np

from qwchat.cpu.memory import available_memory

READ_BYTES = 256 << 20
_TRIALS = 8
_LEAST_FREE = 4 * READ_BYTES


def quick_read_bandwidth(threads: int) -> float | None:
    """Return the bytes per second that `threads` threads read from memory, in about 0.1 s.

    None if little memory is free, since the measurement must not push other programs out.
    """
    available = available_memory()
    if available is not None and available < _LEAST_FREE:
        return None
    parts = np.array_split(np.ones(READ_BYTES // 8, np.int64), threads)
    best = min(_seconds(parts) for _ in range(_TRIALS))
    return READ_BYTES / best


def _seconds(parts: list[np.ndarray]) -> float:
    """Return the time in which one thread per part reads it; NumPy releases the lock."""
    members = [threading.Thread(target=np.bitwise_xor.reduce, args=(part,)) for part in parts]
    began = time.perf_counter()
    for member in members:
        member.start()
    for member in members:
        member.join()
    return time.perf_counter() - began
