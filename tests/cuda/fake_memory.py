"""Device and host memory of the fake driver, with checks of each access."""

from __future__ import annotations

import bisect

import numpy as np

from tests.cuda.interpreter.memory import POISON, Memory

FREED = 0xDD


class MisuseError(AssertionError):
    """The program used the driver in a way that is undefined with a real one."""


class DeviceArrays(Memory):
    """Device memory: arrays at addresses that are never used twice. Each access lies inside a live allocation."""

    def allocate(self, size):
        return self.place_empty(size, np.uint8)

    def free(self, start):
        if start not in self.live:
            raise MisuseError(f"{start:#x} is not in a live allocation, or not its beginning")
        super().free(start)

    def bytes(self, address, size):
        """Return `size` bytes of memory, as a view."""
        index = bisect.bisect_right(self.starts, address) - 1
        offset = address - self.starts[index] if index >= 0 else -1
        if index < 0 or offset >= self.arrays[index].size:
            raise MisuseError(f"{address:#x} is not in a live allocation")
        if offset + size > self.arrays[index].size:
            raise MisuseError(f"{size} bytes at {address:#x} exceed an allocation of {self.arrays[index].size}")
        return self.arrays[index][offset : offset + size]

    @property
    def live(self):
        return {start: array.size for start, array in zip(self.starts, self.arrays, strict=True)}


class HostArrays:
    """Pinned memory. Freed memory is kept and overwritten, so that its address is never used twice."""

    def __init__(self):
        self.live: dict[int, np.ndarray] = {}
        self._freed: list[np.ndarray] = []

    def allocate(self, size):
        array = np.full(size, POISON, np.uint8)
        self.live[array.ctypes.data] = array
        return array.ctypes.data

    def free(self, address):
        if address not in self.live:
            raise MisuseError(f"{address:#x} is not pinned memory")
        array = self.live.pop(address)
        array[:] = FREED
        self._freed.append(array)

    def bytes(self, address, size):
        """Return `size` bytes of pinned memory, as a view."""
        for start, array in self.live.items():
            if start <= address and address + size <= start + array.size:
                return array[address - start : address - start + size]
        raise MisuseError(f"{size} bytes at {address:#x} are not in live pinned memory")
