"""Memory with checks: each access lies inside one array and is aligned."""

from __future__ import annotations

import numpy as np

TYPES = {
    "u8": np.uint8,
    "s8": np.int8,
    "b8": np.uint8,
    "u16": np.uint16,
    "s16": np.int16,
    "b16": np.uint16,
    "u32": np.uint32,
    "s32": np.int32,
    "b32": np.uint32,
    "u64": np.uint64,
    "s64": np.int64,
    "b64": np.uint64,
    "f16": np.float16,
    "f32": np.float32,
    "f64": np.float64,
    "pred": np.bool_,
}
RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class Memory:
    """Global memory: arrays at addresses of their own, each load and store inside one of them."""

    def __init__(self):
        self.starts, self.arrays = [], []

    def place(self, array):
        array = np.ascontiguousarray(array)
        start = 0x10000 if not self.starts else (self.starts[-1] + self.arrays[-1].size + 0x1FFF) & ~0xFFF
        self.starts.append(start)
        self.arrays.append(array.reshape(-1).view(np.uint8))
        return start

    def back(self, start, dtype, shape=-1):
        """Return the array at address `start`."""
        return self.arrays[self.starts.index(start)].view(dtype).reshape(shape)

    def _views(self, addresses, dtype, what):
        size = np.dtype(dtype).itemsize
        index = np.searchsorted(np.array(self.starts), addresses, side="right") - 1
        for one in np.unique(index):
            here = index == one
            offset = addresses[here].astype(np.int64) - self.starts[one]
            if one < 0 or offset.max() + size > self.arrays[one].size or (offset % size).any():
                raise IndexError(f"{what} of {size} bytes outside of allocation {one} or misaligned")
            yield here, self.arrays[one][: self.arrays[one].size // size * size].view(dtype), offset // size

    def load(self, addresses, dtype):
        out = np.empty(len(addresses), dtype)
        for here, view, offset in self._views(addresses, dtype, "load"):
            out[here] = view[offset]
        return out

    def store(self, addresses, values):
        for here, view, offset in self._views(addresses, values.dtype, "store"):
            view[offset] = values[here]
