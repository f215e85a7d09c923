"""Reads and writes of device memory by the host, in any thread, through one small pinned buffer."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwchat.cuda.device import OpenGpu
from qwchat.cuda.memory import PinnedMemory, Stream

_BUFFER_BYTES = 1 << 20


class HostAccess:
    """Copies that are complete when a call returns, after all work that is on the stream.

    Args:
        gpu: the device.
        stream: the stream that computes what is read, and uses what is written.
    """

    def __init__(self, gpu: OpenGpu, stream: Stream) -> None:
        self._gpu, self._stream, self._lock = gpu, stream, threading.Lock()
        self._buffer = PinnedMemory(gpu.driver, _BUFFER_BYTES)
        gpu.on_close(self._buffer.free)

    def read(self, address: int, size: int) -> NDArray[np.uint8]:
        """Return a copy of device memory, (size,) u8."""
        result = np.empty(size, np.uint8)
        with self._lock:
            self._gpu.activate()
            for start in range(0, size, self._buffer.size):
                piece = result[start : start + self._buffer.size]
                self._gpu.driver.copy_to_host(self._buffer.address, address + start, len(piece), self._stream.handle)
                self._stream.synchronise()
                piece[:] = self._buffer.bytes[: len(piece)]
        return result

    def write(self, address: int, array: NDArray[Any]) -> None:
        """Copy a contiguous array to device memory."""
        source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        with self._lock:
            self._gpu.activate()
            for start in range(0, len(source), self._buffer.size):
                piece = source[start : start + self._buffer.size]
                self._buffer.bytes[: len(piece)] = piece
                self._gpu.driver.copy_to_device(address + start, self._buffer.address, len(piece), self._stream.handle)
                self._stream.synchronise()

    def zero(self, address: int, size: int) -> None:
        """Set device memory to zero."""
        with self._lock:
            self._gpu.activate()
            self._gpu.driver.fill(address, 0, size, self._stream.handle)
            self._stream.synchronise()
