"""The PTX of the package and its manifest, and the kernels that a device has loaded from it.

A unit is one PTX file with some kernels. It is compiled by the driver, which keeps the result in its own cache, when
the first of its kernels is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qwchat.cuda.device import OpenGpu
from qwchat.errors import QwchatError

PTX_FOLDER = Path(__file__).with_name("ptx")


@dataclass(frozen=True)
class KernelInfo:
    """A kernel, as the manifest describes it.

    Attributes:
        name: its name, which is unique among all units.
        unit: the PTX file that holds it.
        parameters: names of the parameters in order.
        letters: type of each parameter: `l` u64 address, `i` i32, `f` f32.
        threads: threads of a block.
        blocks_per_multiprocessor: blocks that fit on a multiprocessor at once; it was compiled for that.
        shared_bytes: static shared memory of a block.
    """

    name: str
    unit: str
    parameters: tuple[str, ...]
    letters: str
    threads: int
    blocks_per_multiprocessor: int
    shared_bytes: int


class PtxLibrary:
    """The units for one architecture.

    Args:
        target: 75, 80 or 90.
        folder: holds manifest.json and a folder of PTX files for each architecture.
    """

    def __init__(self, target: int, folder: Path = PTX_FOLDER) -> None:
        self._architecture, self._folder = f"sm_{target}", folder

    @cached_property
    def kernels(self) -> Mapping[str, KernelInfo]:
        """All kernels by name."""
        manifest = json.loads((self._folder / "manifest.json").read_text("utf-8"))
        return {
            name: KernelInfo(
                name,
                unit,
                tuple(parameter for parameter, _ in record["parameters"]),
                "".join(letter for _, letter in record["parameters"]),
                record["threads"],
                record["blocks_per_sm"],
                record["shared_bytes"],
            )
            for unit, described in manifest["targets"][self._architecture].items()
            for name, record in described["kernels"].items()
        }

    def ptx(self, unit: str) -> str:
        """Return the text of a unit."""
        return (self._folder / self._architecture / f"{unit}.ptx").read_text("utf-8")


@dataclass(frozen=True)
class LoadedKernel:
    """A kernel on the device.

    Attributes:
        info: its description.
        handle: the driver's.
    """

    info: KernelInfo
    handle: int


class Modules:
    """Units that are loaded on a device; they are unloaded when the device is closed."""

    def __init__(self, gpu: OpenGpu, library: PtxLibrary | None = None) -> None:
        self._driver = gpu.driver
        self._library = library or PtxLibrary(gpu.target)
        self._modules: dict[str, int] = {}
        self._kernels: dict[str, LoadedKernel] = {}
        self._allowed: dict[str, int] = {}  # dynamic shared memory that each kernel may use
        gpu.on_close(self._unload)

    def has(self, name: str) -> bool:
        """Return whether there is a kernel `name`."""
        return name in self._library.kernels

    def kernel(self, name: str) -> LoadedKernel:
        """Return a kernel, and load its unit if needed.

        Raises:
            KeyError: there is no kernel with this name.
            GpuError: the driver does not compile the unit.
        """
        if name not in self._kernels:
            info = self._library.kernels[name]
            if info.unit not in self._modules:
                self._modules[info.unit] = self._driver.load_module(self._library.ptx(info.unit))
            self._kernels[name] = LoadedKernel(info, self._driver.find_kernel(self._modules[info.unit], name))
        return self._kernels[name]

    def allow_shared_bytes(self, kernel: LoadedKernel, size: int) -> None:
        """Let a kernel be launched with `size` bytes of dynamic shared memory."""
        name = kernel.info.name
        if size > self._allowed.get(name, 0):
            self._driver.allow_shared_bytes(kernel.handle, size)
            self._allowed[name] = size

    def _unload(self) -> None:
        self._kernels.clear()
        while self._modules:
            _, module = self._modules.popitem()
            with suppress(QwchatError):
                self._driver.unload_module(module)
