"""Upload of weights through pinned memory, at the speed of the bus.

A mapped file cannot be copied by the device itself. Its bytes go through two buffers in turn: while the device copies
one, threads of the host fill the other.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwchat.cuda.driver import Driver
from qwchat.cuda.memory import PinnedMemory, Stream

BUFFER_BYTES = 32 << 20
_THREADS = 4  # One thread copies about 10 GB/s, a bus of today 25 to 55.
_SLICE_BYTES = 1 << 20  # A thread copies at least this much.

Progress = Callable[[int], None]
"""Called with the number of bytes that were copied since the last call."""


class Uploader:
    """Copies arrays to the device. A context manager that waits for the copies and frees its buffers.

    Args:
        driver: its context must be current.
        buffer_bytes: size of each of the two buffers.
        progress: called after each piece.
    """

    def __init__(self, driver: Driver, buffer_bytes: int = BUFFER_BYTES, progress: Progress | None = None) -> None:
        self._driver, self._progress, self._turn = driver, progress, 0
        self._lanes: list[tuple[PinnedMemory, Stream]] = []
        with ExitStack() as stack:
            self._pool = stack.enter_context(ThreadPoolExecutor(_THREADS, "upload"))
            for _ in range(2):
                buffer = PinnedMemory(driver, buffer_bytes)
                stack.callback(buffer.free)
                stream = Stream(driver)
                stack.callback(stream.destroy)
                stack.callback(stream.synchronise)
                self._lanes.append((buffer, stream))
            self._stack = stack.pop_all()

    def __enter__(self) -> Uploader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a contiguous array to the device. The copy ends when the context manager does at the latest."""
        source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        step = self._lanes[0][0].size
        for start in range(0, len(source), step):
            piece = source[start : start + step]
            buffer, stream = self._lanes[self._turn % len(self._lanes)]
            self._turn += 1
            stream.synchronise()  # The device has copied what the buffer held.
            self._fill(buffer.bytes, piece)
            self._driver.copy_to_device(address + start, buffer.address, len(piece), stream.handle)
            if self._progress is not None:
                self._progress(len(piece))

    def _fill(self, buffer: NDArray[np.uint8], piece: NDArray[np.uint8]) -> None:
        """Copy `piece` to the beginning of `buffer`, with several threads."""
        step = max(_SLICE_BYTES, -(-len(piece) // _THREADS))

        def copy(start: int) -> None:
            part = piece[start : start + step]
            buffer[start : start + len(part)] = part

        starts = range(0, len(piece), step)
        if len(starts) == 1:
            copy(0)
        else:
            list(self._pool.map(copy, starts))
