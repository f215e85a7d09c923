"""Device and host memory of the fake driver, with checks of each access."""

from __future__ import annotations

import numpy as np

POISON = 0xFF  # NaN as f32 and f16, -1 as an integer
FREED = 0xDD
PAGE = 0x1000


class MisuseError(AssertionError):
    """The program used the driver in a way that is undefined with a real one."""


class DeviceArrays:
    """Device memory: arrays at addresses that are never used twice.

    `load` and `store` are what the PTX interpreter calls. Each access has to lie inside one live allocation.
    """

    def __init__(self):
        self._next = 0x7F00_0000_0000
        self.starts: list[int] = []
        self.arrays: list[np.ndarray] = []

    def allocate(self, size):
        start = self._next
        self._next += -(-size // PAGE) * PAGE + PAGE
        self.starts.append(start)
        self.arrays.append(np.full(size, POISON, np.uint8))
        return start

    def free(self, address):
        index = self._index(address)
        if self.starts[index] != address:
            raise MisuseError(f"{address:#x} is not the beginning of an allocation")
        self.arrays[index] = np.zeros(0, np.uint8)

    def _index(self, address):
        index = int(np.searchsorted(np.array(self.starts, np.uint64), np.uint64(address), side="right")) - 1
        if index < 0 or not self.arrays[index].size:
            raise MisuseError(f"{address:#x} is not in a live allocation")
        return index

    def bytes(self, address, size):
        """Return `size` bytes of memory, as a view."""
        index = self._index(address)
        offset = address - self.starts[index]
        if offset + size > self.arrays[index].size:
            raise MisuseError(f"{size} bytes at {address:#x} exceed an allocation of {self.arrays[index].size}")
        return self.arrays[index][offset : offset + size]

    @property
    def live(self):
        return {start: array.size for start, array in zip(self.starts, self.arrays, strict=True) if array.size}

    def _views(self, addresses, dtype, what):
        size = np.dtype(dtype).itemsize
        index = np.searchsorted(np.array(self.starts, np.int64), addresses.astype(np.int64), side="right") - 1
        for one in np.unique(index):
            here = index == one
            offset = addresses[here].astype(np.int64) - self.starts[one]
            if one < 0 or offset.max() + size > self.arrays[one].size or (offset % size).any():
                raise MisuseError(f"{what} of {size} bytes outside of allocation {one} or misaligned")
            yield here, self.arrays[one][: self.arrays[one].size // size * size].view(dtype), offset // size

    def load(self, addresses, dtype):
        out = np.empty(len(addresses), dtype)
        for here, view, offset in self._views(addresses, dtype, "load"):
            out[here] = view[offset]
        return out

    def store(self, addresses, values):
        for here, view, offset in self._views(addresses, values.dtype, "store"):
            view[offset] = values[here]


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
