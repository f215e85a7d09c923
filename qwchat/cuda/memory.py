"""Memory of the device, counted by purpose, and pinned memory of the host."""

from __future__ import annotations

import ctypes
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwchat.cuda.device import OpenGpu
from qwchat.cuda.driver import Driver
from qwchat.errors import QwchatError

ALIGNMENT = 256


def aligned(size: int) -> int:
    """Return `size` rounded up to the alignment of all parts of an allocation."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def packed_bytes(sizes: Iterable[int]) -> int:
    """Return the bytes of one allocation that holds parts of `sizes` bytes, each of them aligned."""
    return sum(aligned(size) for size in sizes)


@dataclass(frozen=True)
class Allocation:
    """Memory on the device.

    Attributes:
        address: where it begins, aligned.
        size: bytes.
        purpose: what it is counted as.
    """

    address: int
    size: int
    purpose: str

    def parts(self, sizes: Sequence[int]) -> list[int]:
        """Return the addresses of parts of `sizes` bytes, one after the other and each of them aligned."""
        if packed_bytes(sizes) > self.size:
            raise ValueError(f"{packed_bytes(sizes):,} bytes do not fit into {self.size:,} for {self.purpose}")
        addresses, address = [], self.address
        for size in sizes:
            addresses.append(address)
            address += aligned(size)
        return addresses


class DeviceMemory:
    """All allocations of one process on a device; they are freed when the device is closed."""

    def __init__(self, gpu: OpenGpu) -> None:
        self._gpu = gpu
        self._live: dict[int, Allocation] = {}
        self._dropped: deque[Callable[[], None]] = deque()
        gpu.on_close(self._free_all)

    @property
    def bytes_by_purpose(self) -> dict[str, int]:
        """Bytes of the live allocations of each purpose."""
        counted: Counter[str] = Counter()
        for allocation in self._live.values():
            counted[allocation.purpose] += allocation.size
        return dict(counted)

    def allocate(self, size: int, purpose: str) -> Allocation:
        """Return memory of `size` bytes, rounded up to the alignment. Its content is arbitrary.

        Raises:
            GpuMemoryError: the device has too little free memory.
        """
        self.collect()
        size = aligned(max(size, 1))
        allocation = Allocation(self._gpu.driver.allocate(size), size, purpose)
        self._live[allocation.address] = allocation
        return allocation

    def free(self, allocation: Allocation) -> None:
        """Free an allocation, after the work that uses it has ended; a second call does nothing."""
        if self._live.pop(allocation.address, None) is not None:
            self._gpu.driver.free(allocation.address)

    def on_delete(self, owner: object, destroy: Callable[[], None]) -> None:
        """Call `destroy`, which must not refer to `owner`, in the next `collect` after `owner` was deleted.

        An object may be deleted in any thread and within a capture, where the driver must not be called.
        """
        weakref.finalize(owner, self._dropped.append, destroy).atexit = False

    def collect(self) -> None:
        """Destroy what belonged to deleted objects."""
        while self._dropped:
            self._dropped.popleft()()

    def _free_all(self) -> None:
        for allocation in reversed(list(self._live.values())):
            with suppress(QwchatError):
                self.free(allocation)


class PinnedMemory:
    """Memory of the host that the device copies from and to by itself.

    Attributes:
        address: where it begins; 0 after `free`.
        bytes: the memory, (size,) u8.
    """

    def __init__(self, driver: Driver, size: int) -> None:
        self._driver, self.size = driver, max(size, 1)
        self.address = driver.allocate_host(self.size)
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.address))

    def free(self) -> None:
        """Free the memory; a second call does nothing. Arrays over it must not be used afterwards."""
        if self.address:
            address, self.address = self.address, 0
            self.bytes = np.zeros(0, np.uint8)
            self._driver.free_host(address)


class Stream:
    """A stream of the device.

    Attributes:
        handle: the driver's; 0 after `destroy`.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.handle = driver.create_stream()

    def synchronise(self) -> None:
        """Wait until all work on the stream has ended."""
        self._driver.synchronise_stream(self.handle)

    def destroy(self) -> None:
        """Destroy the stream; a second call does nothing."""
        if self.handle:
            handle, self.handle = self.handle, 0
            self._driver.destroy_stream(handle)
