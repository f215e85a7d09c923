"""Find GPUs, and open one: its context, and everything that is destroyed with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from quant.wording import Argument, ArgumentMessage
from qwchat.cuda.driver import Attribute, Driver
from qwchat.cuda.driver_errors import driver_too_old, error_of
from qwchat.cuda.manifest import TARGETS
from qwchat.errors import GpuError, QwchatError, UsageError

_NEEDED_VERSION = {75: 11040, 80: 11040, 90: 11080}  # Drivers that know PTX 7.4, and 7.8 for sm_90.
_DDR = 2  # Transfers per memory clock.


@dataclass(frozen=True)
class Gpu:
    """A GPU, as the driver describes it.

    Attributes:
        index: number of the device, from 0.
        name: name of the product.
        total_memory: size of its memory.
        capability: compute capability, such as (8, 9).
        multiprocessors: number of streaming multiprocessors.
        bandwidth: bytes per second of its memory by clock and bus width; 0 if the driver does not say.
        l2_bytes: size of the L2 cache.
        shared_bytes: largest shared memory of a block.
        driver_version: newest CUDA version of the driver, 1000 * major + 10 * minor.
    """

    index: int
    name: str
    total_memory: int
    capability: tuple[int, int]
    multiprocessors: int
    bandwidth: int
    l2_bytes: int
    shared_bytes: int
    driver_version: int

    @property
    def target(self) -> int:
        """Architecture (75, 80 or 90) of the PTX for this device and driver.

        Raises:
            GpuError: the device or its driver is too old.
        """
        number = 10 * self.capability[0] + self.capability[1]
        fitting = [target for target in TARGETS if target <= number]
        if not fitting:
            raise GpuError(
                f"{self.name} has compute capability {self.capability[0]}.{self.capability[1]}, but 7.5 is needed"
            )
        known = [target for target in fitting if _NEEDED_VERSION[target] <= self.driver_version]
        if not known:
            raise driver_too_old(self.driver_version, min(_NEEDED_VERSION[target] for target in fitting))
        return known[-1]


def find_gpus(driver: Driver) -> list[Gpu]:
    """Start the driver and return all GPUs, at least one. It takes 10 to 100 ms or more.

    Args:
        driver: outside of tests a `LibCuda`, which raises GpuError where there is no driver.

    Raises:
        GpuError: the driver cannot be used, or there is no GPU.
    """
    driver.initialise()
    version = driver.driver_version()
    count = driver.device_count()
    if count == 0:
        raise error_of(100, "cuDeviceGetCount")
    return [_describe(driver, index, version) for index in range(count)]


def _describe(driver: Driver, index: int, version: int) -> Gpu:
    values = {attribute: driver.device_attribute(index, attribute) for attribute in Attribute}
    clock, bits = values[Attribute.MEMORY_CLOCK_KHZ] * 1000, values[Attribute.MEMORY_BUS_BITS]
    return Gpu(
        index=index,
        name=driver.device_name(index),
        total_memory=driver.device_bytes(index),
        capability=(values[Attribute.CAPABILITY_MAJOR], values[Attribute.CAPABILITY_MINOR]),
        multiprocessors=values[Attribute.MULTIPROCESSORS],
        bandwidth=_DDR * clock * bits // 8,
        l2_bytes=values[Attribute.L2_BYTES],
        shared_bytes=values[Attribute.SHARED_BYTES_PER_BLOCK],
        driver_version=version,
    )


def select_gpu(gpus: Sequence[Gpu], index: int | None) -> Gpu:
    """Return the GPU `index`; None chooses the one with the highest bandwidth, the first of equals.

    Raises:
        UsageError: there is no GPU with this index.
    """
    if index is None:
        return max(gpus, key=lambda gpu: gpu.bandwidth)
    if not 0 <= index < len(gpus):
        names = ", ".join(f"cuda:{gpu.index} ({gpu.name})" for gpu in gpus)
        raise UsageError(ArgumentMessage(Argument("device", f"cuda:{index}"), f" does not exist: choose from {names}"))
    return gpus[index]


class OpenGpu:
    """A GPU in use: its context, which must be current in the thread that calls the driver.

    What is made on the device is registered with `on_close`, to be destroyed with it.

    Args:
        driver: started by `find_gpus`.
        gpu: from `find_gpus`.

    Raises:
        GpuError: the device cannot be used, or not with this driver.
        GpuMemoryError: the context does not fit in its memory.
    """

    def __init__(self, driver: Driver, gpu: Gpu) -> None:
        self.driver, self.gpu, self.target = driver, gpu, gpu.target
        self._callbacks: list[Callable[[], None]] = []
        self._waits: list[Callable[[], None]] = []
        self._context = driver.retain_context(gpu.index)
        self.on_close(lambda: driver.release_context(gpu.index))
        try:
            driver.set_context(self._context)
        except BaseException:
            self.close()
            raise
        self.on_close(lambda: driver.set_context(0))

    def __enter__(self) -> OpenGpu:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def on_close(self, destroy: Callable[[], None]) -> None:
        """Call `destroy` when the device is closed, before everything that was registered earlier."""
        self._callbacks.append(destroy)

    def wait_before_close(self, wait: Callable[[], None]) -> None:
        """Call `wait` before anything is destroyed: the work that it waits for uses memory that is freed then."""
        self._waits.append(wait)

    def activate(self) -> None:
        """Make the context current in this thread."""
        self.driver.set_context(self._context)

    def free_bytes(self) -> int:
        """Return the free memory of the device, as other processes leave it."""
        return self.driver.memory_info()[0]

    def close(self) -> None:
        """Destroy everything on the device and release the context; a second call does nothing.

        Errors of the device are ignored: after a lost context each call fails, and the driver frees everything when
        the process ends.
        """
        if self._callbacks:
            for prepare in (self.activate, *self._waits):
                with suppress(QwchatError):
                    prepare()
        self._waits.clear()
        while self._callbacks:
            with suppress(QwchatError):
                self._callbacks.pop()()
