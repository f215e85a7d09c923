"""The kernels that a device has loaded.

A unit is one PTX file with some kernels. It is compiled by the driver, which keeps the result in its own cache, when
the first of its kernels is asked for.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qwchat.cuda import manifest
from qwchat.cuda.device import OpenGpu
from qwchat.cuda.manifest import KernelRecord
from qwchat.errors import QwchatError


@dataclass(frozen=True)
class LoadedKernel:
    """A kernel on the device.

    Attributes:
        record: how it is launched.
        handle: the driver's.
    """

    record: KernelRecord
    handle: int


class Modules:
    """Units that are loaded on a device; they are unloaded when the device is closed.

    Args:
        gpu: the device.
        folder: holds the PTX and its manifest.
    """

    def __init__(self, gpu: OpenGpu, folder: Path = manifest.PTX_FOLDER) -> None:
        self._driver, self._target, self._folder = gpu.driver, gpu.target, folder
        self._modules: dict[str, int] = {}
        self._kernels: dict[str, LoadedKernel] = {}
        self._allowed: dict[str, int] = {}  # dynamic shared memory that each kernel may use
        gpu.on_close(self._unload)

    def has(self, name: str) -> bool:
        """Return whether there is a kernel `name`."""
        return name in manifest.kernels(self._folder)

    def kernel(self, name: str) -> LoadedKernel:
        """Return a kernel, and load its unit if needed.

        Raises:
            KeyError: there is no kernel with this name.
            GpuError: the driver does not compile the unit.
        """
        if name not in self._kernels:
            record = manifest.kernels(self._folder)[name]
            if record.unit not in self._modules:
                ptx = manifest.ptx_text(record.unit, self._target, self._folder)
                self._modules[record.unit] = self._driver.load_module(ptx)
            self._kernels[name] = LoadedKernel(record, self._driver.find_kernel(self._modules[record.unit], name))
        return self._kernels[name]

    def allow_shared_bytes(self, kernel: LoadedKernel, size: int) -> None:
        """Let a kernel be launched with `size` bytes of dynamic shared memory."""
        name = kernel.record.name
        if size > self._allowed.get(name, 0):
            self._driver.allow_shared_bytes(kernel.handle, size)
            self._allowed[name] = size

    def _unload(self) -> None:
        self._kernels.clear()
        while self._modules:
            _, module = self._modules.popitem()
            with suppress(QwchatError):
                self._driver.unload_module(module)
