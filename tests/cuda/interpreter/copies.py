"""Asynchronous copies from global to shared memory: the bytes arrive when the thread waits for them, not before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_NOT_COMMITTED = -1


@dataclass
class _Copy:
    threads: np.ndarray
    targets: np.ndarray
    content: np.ndarray
    size: int
    group: np.ndarray


class Copies:
    """Copies on their way."""

    def __init__(self, wave) -> None:
        self._wave = wave
        self._copies: list[_Copy] = []
        self._groups = np.zeros(wave.thread_count, np.int64)

    def issue(self, targets, sources, w, size, count, mask, line):
        """Begin a copy of `size` bytes per thread, of which `count` are read and the others are zeros."""
        threads = self._wave.threads(w)
        targets, sources, count = (np.broadcast_to(v, threads.shape) for v in (targets, sources, count))
        if mask is not None:
            mask = np.broadcast_to(mask, threads.shape)
            threads, targets, sources, count = threads[mask], targets[mask], sources[mask], count[mask]
        if not threads.size:
            return
        if (sources.astype(np.uint64) & np.uint64(size - 1)).any():
            raise IndexError(f"a copy of {size} bytes is not aligned")
        content = np.zeros((threads.size, size // 4), np.uint32)
        for word in range(size // 4):
            inside = count >= 4 * word + 4
            if inside.any():
                words = sources[inside].astype(np.uint64) + np.uint64(4 * word)
                content[inside, word] = self._wave.global_memory.read(words, threads[inside], 4, line, [])
        if (count % 4).any():
            raise NotImplementedError("a copy of a number of bytes that is not a multiple of 4")
        self._wave.shared_memory.announce(targets, threads, size, line)
        group = np.full(threads.size, _NOT_COMMITTED)
        self._copies.append(_Copy(threads, targets, content, size, group))

    def commit(self, w):
        """Make the thread's copies since the last commit a group."""
        threads = self._wave.threads(w)
        mine = np.zeros(self._groups.size, bool)
        mine[threads] = True
        for copy in self._copies:
            now = (copy.group == _NOT_COMMITTED) & mine[copy.threads]
            copy.group[now] = self._groups[copy.threads[now]]
        self._groups[threads] += 1

    def wait(self, w, left, line):
        """Deliver the groups of the threads, without the last `left`."""
        mine = np.zeros(self._groups.size, bool)
        mine[self._wave.threads(w)] = True
        remaining = []
        for copy in self._copies:
            due = mine[copy.threads] & (copy.group != _NOT_COMMITTED)
            due &= copy.group < self._groups[copy.threads] - left
            if due.any():
                words = copy.content[due]
                values = words if copy.size == 16 else np.ascontiguousarray(words).view(f"u{copy.size}").reshape(-1)
                self._wave.shared_memory.write(copy.targets[due], copy.threads[due], values, copy.size, line)
            kept = ~due
            if kept.any():
                parts = (copy.threads[kept], copy.targets[kept], copy.content[kept], copy.size, copy.group[kept])
                remaining.append(_Copy(*parts))
        self._copies = remaining
