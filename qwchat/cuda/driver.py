"""The calls of the NVIDIA driver that this package makes, as a protocol.

`qwchat.cuda.libcuda.LibCuda` makes them; tests use an object that executes them without a GPU. All handles and
addresses are plain integers. A handle of 0 stands for nothing, except that stream 0 is never used.

Every method raises the exception of `qwchat.cuda.driver_errors` for the code that the driver returns. Work on a stream
is asynchronous, so a call may raise the error of an earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol


class Attribute(IntEnum):
    """Properties of a device, with the driver's numbers."""

    MULTIPROCESSORS = 16
    MEMORY_CLOCK_KHZ = 36
    MEMORY_BUS_BITS = 37
    L2_BYTES = 38
    CAPABILITY_MAJOR = 75
    CAPABILITY_MINOR = 76
    SHARED_BYTES_PER_BLOCK = 97


class Driver(Protocol):
    """The NVIDIA driver. Calls on memory, modules, streams, events and graphs need a current context."""

    def initialise(self) -> None:
        """Start the driver; must precede all other calls."""

    def driver_version(self) -> int:
        """Return the newest CUDA version that the driver supports, 1000 * major + 10 * minor."""

    def device_count(self) -> int:
        """Return the number of visible devices."""

    def device_name(self, index: int) -> str:
        """Return the name of a device."""

    def device_bytes(self, index: int) -> int:
        """Return the bytes of a device's memory."""

    def device_attribute(self, index: int, attribute: Attribute) -> int:
        """Return a property of a device."""

    def retain_context(self, index: int) -> int:
        """Return the primary context of a device, which exists until it has been released as often as retained."""

    def release_context(self, index: int) -> None:
        """Release the primary context of a device."""

    def set_context(self, context: int) -> None:
        """Make a context current in this thread; 0 for none."""

    def memory_info(self) -> tuple[int, int]:
        """Return the free and the total bytes of the current device."""

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes on the device, a multiple of 256."""

    def free(self, address: int) -> None:
        """Free device memory, after the work that uses it has ended."""

    def allocate_host(self, size: int) -> int:
        """Return the address of `size` bytes of pinned memory of this process."""

    def free_host(self, address: int) -> None:
        """Free pinned memory."""

    def copy_to_device(self, address: int, source: int, size: int, stream: int) -> None:
        """Copy `size` bytes from the pinned memory `source` to the device; neither may change before the copy ends."""

    def copy_to_host(self, target: int, address: int, size: int, stream: int) -> None:
        """Copy `size` bytes from the device to the pinned memory `target`."""

    def copy_on_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy `size` bytes from one device address to another; the ranges must not overlap."""

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        """Set `size` bytes of device memory to `value` (0..255)."""

    def load_module(self, ptx: str) -> int:
        """Compile PTX for the current device and return the module. The error names the first line of the log."""

    def unload_module(self, module: int) -> None:
        """Unload a module and its kernels."""

    def find_kernel(self, module: int, name: str) -> int:
        """Return the kernel `name` of a module."""

    def allow_shared_bytes(self, kernel: int, size: int) -> None:
        """Let a kernel be launched with `size` bytes of dynamic shared memory, which may exceed 48 KiB."""

    def launch(
        self,
        kernel: int,
        grid: int,
        block: int,
        shared_bytes: int,
        stream: int,
        letters: str,
        values: Sequence[float],
        overlap: bool,
    ) -> None:
        """Launch a kernel.

        Args:
            kernel: from `find_kernel`.
            grid: number of blocks.
            block: threads of each block.
            shared_bytes: dynamic shared memory of each block.
            stream: stream on which it runs.
            letters: type of each parameter: `l` u64 address, `i` i32, `f` f32.
            values: the parameters.
            overlap: let the kernel begin before the previous kernel on the stream has ended (programmatic dependent
                launch). The kernel must wait for it by itself.
        """

    def create_stream(self) -> int:
        """Return a stream that does not wait for others."""

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream."""

    def synchronise_stream(self, stream: int) -> None:
        """Wait until all work on a stream has ended."""

    def stream_is_idle(self, stream: int) -> bool:
        """Return whether all work on a stream has ended."""

    def wait_event(self, stream: int, event: int) -> None:
        """Let later work on a stream wait for an event."""

    def create_event(self, timed: bool = False) -> int:
        """Return an event; one without `timed` is cheaper and cannot be used in `milliseconds`."""

    def destroy_event(self, event: int) -> None:
        """Destroy an event."""

    def record_event(self, event: int, stream: int) -> None:
        """Let an event happen after the work that is on a stream now."""

    def synchronise_event(self, event: int) -> None:
        """Wait until an event has happened; return at once if it was never recorded."""

    def milliseconds(self, start: int, end: int) -> float:
        """Return the time between two timed events that have happened."""

    def begin_capture(self, stream: int) -> None:
        """Record work on a stream into a graph instead of doing it."""

    def end_capture(self, stream: int) -> int:
        """Return the graph that was recorded since `begin_capture`; 0 if the recording failed."""

    def destroy_graph(self, graph: int) -> None:
        """Destroy a graph; its executables stay valid."""

    def instantiate(self, graph: int) -> int:
        """Return an executable of a graph."""

    def destroy_executable(self, executable: int) -> None:
        """Destroy an executable graph."""

    def launch_graph(self, executable: int, stream: int) -> None:
        """Run all work of an executable graph on a stream, with the parameters that it was captured with."""
