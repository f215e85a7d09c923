"""Kernels and memory as the interpreter has them, on a real GPU: it runs the interpreter's own tests, too.

`tests.cuda.interpreter` gives out these classes if the environment variable QWCHAT_TEST_GPU is set.
"""

from __future__ import annotations

import ctypes
import math
import re
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from qwchat.cuda.device import OpenGpu, find_gpus, select_gpu
from qwchat.cuda.libcuda import LibCuda
from qwchat.cuda.memory import PinnedMemory, Stream

_PARAMETER = re.compile(r"\.param\s+\.(?P<kind>\w+)")
_LETTERS = {"u64": "l", "b64": "l", "s64": "l", "u32": "i", "s32": "i", "b32": "i", "f32": "f"}
_TARGET = re.compile(r"^\.target\s+sm_(\d+)", re.MULTILINE)
POISON = 0xFF


@cache
def opened() -> tuple[OpenGpu, Stream]:
    """Return the GPU and a stream, for the whole process."""
    driver = LibCuda()
    gpu = OpenGpu(driver, select_gpu(find_gpus(driver), None))
    return gpu, Stream(driver)


class GpuArrays:
    """Arrays in the memory of the GPU; see `tests.cuda.interpreter.Memory`."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}

    def place(self, array: np.ndarray) -> int:
        """Copy an array to the GPU and return its address."""
        content = np.array(array, order="C", copy=True).reshape(-1).view(np.uint8)
        gpu, _ = opened()
        address = gpu.driver.allocate(max(content.size, 1))
        self._sizes[address] = content.size
        _copy(address, content, to_device=True)
        return address

    def place_empty(self, shape: int | tuple[int, ...], dtype: type) -> int:
        """Return the address of an array that holds poison: NaN or -1."""
        return self.place(np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, POISON, np.uint8))

    def back(self, start: int, dtype: type, shape: int | tuple[int, ...] = -1) -> np.ndarray:
        """Return a copy of the array at address `start`."""
        content = np.empty(self._sizes[start], np.uint8)
        _copy(start, content, to_device=False)
        return content.view(dtype).reshape(shape)

    def free(self, start: int) -> None:
        """Free the array at address `start`."""
        del self._sizes[start]
        opened()[0].driver.free(start)

    def __del__(self) -> None:
        for address in self._sizes:
            opened()[0].driver.free(address)


def _copy(address: int, content: np.ndarray, *, to_device: bool) -> None:
    gpu, stream = opened()
    if not content.size:
        return
    pinned = PinnedMemory(gpu.driver, content.size)
    if to_device:
        ctypes.memmove(pinned.address, content.ctypes.data, content.size)
        gpu.driver.copy_to_device(address, pinned.address, content.size, stream.handle)
    else:
        gpu.driver.copy_to_host(pinned.address, address, content.size, stream.handle)
    stream.synchronise()
    if not to_device:
        content[:] = pinned.bytes[: content.size]
    pinned.free()


class GpuKernel:
    """A kernel of a PTX text; see `tests.cuda.interpreter.Kernel`."""

    def __init__(self, text: str, name: str) -> None:
        gpu, _ = opened()
        major, minor = gpu.gpu.capability
        if any(int(number) > 10 * major + minor for number in _TARGET.findall(text)):
            pytest.skip("this GPU does not run PTX of this target")
        entry = text[re.search(rf"\.entry\s+{re.escape(name)}\b", text).end() :]
        kinds = _PARAMETER.findall(entry.partition(")")[0])
        self._letters = "".join(_LETTERS[kind] for kind in kinds)
        self.program = SimpleNamespace(name=name)
        self._handle = gpu.driver.find_kernel(gpu.driver.load_module(text), name)

    def run(
        self,
        memory: GpuArrays,
        grid: int | tuple[int, ...],
        threads: int | tuple[int, ...],
        *arguments: int | float,
        shared_bytes: int = 0,
        **_: object,
    ) -> None:
        """Run the kernel and wait for it."""
        gpu, stream = opened()
        if not all(isinstance(size, int) or math.prod(size) == size[0] for size in (grid, threads)):
            pytest.skip("the program launches grids of one dimension only")
        blocks, block = (size if isinstance(size, int) else size[0] for size in (grid, threads))
        if shared_bytes:
            gpu.driver.allow_shared_bytes(self._handle, shared_bytes)
        gpu.driver.launch(self._handle, blocks, block, shared_bytes, stream.handle, self._letters, arguments, False)
        stream.synchronise()
