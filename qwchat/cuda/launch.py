"""Launches of kernels by keyword, checked against the manifest."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qwchat.cuda.driver import Driver
from qwchat.cuda.modules import LoadedKernel, Modules

_INTEGER_RANGES = {letter: np.iinfo(kind) for letter, kind in (("l", np.uint64), ("i", np.int32))}


@dataclass(frozen=True)
class Launch:
    """A kernel with everything that its launch needs.

    Attributes:
        kernel: the kernel.
        grid: number of blocks.
        shared_bytes: dynamic shared memory of each block.
        values: the parameters, in the order of the kernel.
        overlap: whether the kernel may begin before the previous launch has ended.
    """

    kernel: LoadedKernel
    grid: int
    shared_bytes: int
    values: tuple[float, ...]
    overlap: bool

    def run(self, driver: Driver, stream: int) -> None:
        """Launch the kernel on a stream."""
        record = self.kernel.record
        driver.launch(
            *(self.kernel.handle, self.grid, record.threads, self.shared_bytes, stream),
            *(record.letters, self.values, self.overlap),
        )


@dataclass(frozen=True)
class HostCopy:
    """A copy between the device and pinned memory, which must stay there.

    Attributes:
        device: address on the device.
        host: address of pinned memory.
        size: bytes.
        to_device: direction.
    """

    device: int
    host: int
    size: int
    to_device: bool

    def run(self, driver: Driver, stream: int) -> None:
        """Copy on a stream."""
        if self.to_device:
            driver.copy_to_device(self.device, self.host, self.size, stream)
        else:
            driver.copy_to_host(self.host, self.device, self.size, stream)


def after_copy(launches: Iterable[Launch]) -> Iterator[Launch]:
    """Yield launches, the first one without overlap: only a kernel lets its successor begin early."""
    for index, launch in enumerate(launches):
        yield launch if index else replace(launch, overlap=False)


Step = Launch | HostCopy
"""Work that a stream does, or that a graph replays."""


def run_all(steps: Sequence[Step], driver: Driver, stream: int) -> None:
    """Put some steps on a stream, one after the other."""
    for step in steps:
        step.run(driver, stream)


def prepare(
    modules: Modules,
    name: str,
    grid: int,
    parameters: Mapping[str, float],
    *,
    shared_bytes: int = 0,
    overlap: bool = False,
) -> Launch:
    """Return a launch of the kernel `name`, and load the kernel.

    Args:
        modules: where the kernel is loaded.
        name: name of the kernel.
        grid: number of blocks, at least 1.
        parameters: the kernel's parameters by name, all of them.
        shared_bytes: dynamic shared memory of each block.
        overlap: whether the kernel may begin before the previous launch has ended; it has to wait for it by itself.

    Raises:
        KeyError: there is no such kernel.
        TypeError: parameters are missing, unknown or of another type.
        ValueError: a number is out of range.
    """
    kernel = modules.kernel(name)
    record = kernel.record
    missing = [parameter for parameter in record.names if parameter not in parameters]
    unknown = [parameter for parameter in parameters if parameter not in record.names]
    if missing or unknown:
        raise TypeError(f"{name}: missing parameters {missing}, unknown parameters {unknown}")
    if not 1 <= grid <= _INTEGER_RANGES["i"].max:
        raise ValueError(f"{name}: a grid of {grid} blocks")
    values = tuple(
        _checked(f"{name}: {parameter}", letter, parameters[parameter])
        for parameter, letter in zip(record.names, record.letters, strict=True)
    )
    if shared_bytes:
        modules.allow_shared_bytes(kernel, shared_bytes)
    return Launch(kernel, grid, shared_bytes, values, overlap)


def _checked(where: str, letter: str, value: float) -> float:
    """Return a parameter as a plain number. Raises TypeError or ValueError if its type or range does not fit."""
    if letter == "f":
        if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
            raise TypeError(f"{where} must be a number, not {value!r}")
        return float(value)
    limits = _INTEGER_RANGES[letter]
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{where} must be an integer, not {value!r}") from None
    if not limits.min <= number <= limits.max:
        raise ValueError(f"{where} is out of range: {number}")
    return number
