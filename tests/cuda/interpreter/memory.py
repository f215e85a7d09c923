"""Global memory with checks: each access lies inside one array and is aligned."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Watch = Callable[..., None]
"""Takes which of the addresses lie in an array (None = all), its number and size in bytes, and their offsets."""

POISON = 0xFF
"""Byte of memory that nothing was written to: a NaN as a float, -1 as an integer."""
_FIRST = 0x7F00_0000_0000  # Addresses need 64 bits, as on a GPU.
_GAP = 0x1000


@dataclass(frozen=True)
class Effect:
    """What a store did, access by access.

    Attributes:
        unchanged: Whether the bytes were there before.
        agreed: Whether they are there afterwards, although others may have stored to the same place.
    """

    unchanged: np.ndarray
    agreed: np.ndarray


def equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return which accesses have equal bytes; accesses of 16 bytes are rows."""
    return a == b if a.ndim == 1 else (a == b).all(1)


class Memory:
    """Arrays at addresses of their own."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.arrays: list[np.ndarray] = []
        self._end = _FIRST
        self._views: dict[tuple[int, int], np.ndarray] = {}

    def place(self, array: np.ndarray) -> int:
        """Copy an array into memory. Return its address, a multiple of 256."""
        content = np.array(array, order="C", copy=True).reshape(-1).view(np.uint8)
        start = self._end
        self.starts.append(start)
        self.arrays.append(content)
        self._end = (start + content.size + _GAP + 255) & ~255
        return start

    def place_empty(self, shape: int | tuple[int, ...], dtype: type) -> int:
        """Return the address of an array that holds poison: NaN or -1."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.place(np.full(count, POISON, np.uint8))

    def back(self, start: int, dtype: type, shape: int | tuple[int, ...] = -1) -> np.ndarray:
        """Return the array at address `start`; writing to it writes to memory."""
        return self.arrays[self.starts.index(start)].view(dtype).reshape(shape)

    def free(self, start: int) -> None:
        """Remove the array at address `start`; its address is not used again."""
        index = self.starts.index(start)
        del self.starts[index], self.arrays[index]
        self._views.clear()

    def load(self, addresses: np.ndarray, size: int, watch: Watch | None = None) -> np.ndarray:
        """Return `size` bytes (1, 2, 4, 8 or 16) from each address, as unsigned integers; 16 as rows of four u32.

        `watch` is called for each array that is met.

        Raises:
            IndexError: An address lies outside all arrays or is not a multiple of `size`.
        """
        out = None
        for here, index, offset in self._parts(addresses, size, "load"):
            if watch:
                watch(here, index, self.arrays[index].size, offset * size)
            view = self._view(index, size)
            if here is None:
                return view[offset]
            if out is None:
                out = np.empty((addresses.size, *view.shape[1:]), view.dtype)
            out[here] = view[offset]
        return out

    def store(
        self, addresses: np.ndarray, values: np.ndarray, size: int, watch: Callable[..., None] | None = None
    ) -> None:
        """Store `size` bytes at each address; if addresses are equal, the last one counts.

        `watch` is called as by `load`, with an `Effect`.

        Raises:
            IndexError: As `load`.
        """
        for here, index, offset in self._parts(addresses, size, "store"):
            view, mine = self._view(index, size), values if here is None else values[here]
            before = view[offset] if watch else None
            view[offset] = mine
            if watch:
                effect = Effect(equal(before, mine), equal(view[offset], mine))
                watch(here, index, self.arrays[index].size, offset * size, effect)

    def _view(self, index: int, size: int) -> np.ndarray:
        view = self._views.get((index, size))
        if view is None:
            array = self.arrays[index]
            whole = array[: array.size // size * size]
            view = whole.view(np.uint32).reshape(-1, 4) if size == 16 else whole.view(f"u{size}")
            self._views[index, size] = view
        return view

    def _parts(self, addresses, size, what):
        """Yield (which addresses or None for all, array, offset in units of `size`) for each array that is met."""
        low, high = int(addresses.min()), int(addresses.max())
        index = bisect.bisect_right(self.starts, low) - 1
        if index >= 0 and high + size <= self.starts[index] + self.arrays[index].size:
            yield None, index, self._offset(addresses, index, size, what)
            return
        indexes = np.searchsorted(np.array(self.starts, np.uint64), addresses, side="right") - 1
        for one in np.unique(indexes):
            here = indexes == one
            some = addresses[here]
            if one < 0 or int(some.max()) + size > self.starts[one] + self.arrays[one].size:
                after = int(some.max()) - self.starts[max(one, 0)]
                where = (
                    f"byte {after} of array {one} ({self.arrays[one].size} bytes)" if one >= 0 else "before all arrays"
                )
                raise IndexError(f"{what} of {size} bytes outside of memory: {where}")
            yield here, int(one), self._offset(some, int(one), size, what)

    def _offset(self, addresses, index, size, what):
        offset = addresses - np.uint64(self.starts[index])
        if size > 1:
            if (offset & np.uint64(size - 1)).any():
                raise IndexError(f"{what} of {size} bytes is not aligned")
            offset = offset >> np.uint64(size.bit_length() - 1)
        return offset.astype(np.int64)
