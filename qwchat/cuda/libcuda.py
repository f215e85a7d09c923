"""The NVIDIA driver through ctypes.

`cuda.h` renames many functions (`cuMemAlloc` is `cuMemAlloc_v2` in the library), and ctypes needs the real names.
ctypes releases the interpreter lock during each call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_float, c_int, c_size_t, c_void_p
from typing import Any

from qwchat.cuda.driver import Attribute
from qwchat.cuda.driver_errors import NOT_READY, SUCCESS, error_of, missing_function
from qwchat.cuda.libcuda_types import (
    ADDRESS,
    CAPTURE_THREAD_LOCAL,
    EVENT_DEFAULT,
    EVENT_DISABLE_TIMING,
    FUNCTION_MAX_DYNAMIC_SHARED_BYTES,
    HANDLE,
    JIT_ERROR_LOG_BUFFER,
    JIT_ERROR_LOG_BUFFER_BYTES,
    PROGRAMMATIC_STREAM_SERIALISATION,
    SIGNATURES,
    STREAM_NON_BLOCKING,
    LaunchAttribute,
    LaunchConfig,
)
from qwchat.cuda.library import LIBRARY, load_library

_LOG_BYTES = 8192
_NAME_BYTES = 256
_PARAMETER_TYPES: dict[str, Any] = {"l": ctypes.c_uint64, "i": ctypes.c_int32, "f": ctypes.c_float}


class LibCuda:
    """The driver of this machine. It implements `qwchat.cuda.driver.Driver`, which documents the methods.

    Args:
        library: name or path of the shared library.

    Raises:
        GpuError: there is no such library.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        self._library = load_library(library)
        self._functions: dict[str, Any] = {}
        self._serialise = LaunchAttribute(PROGRAMMATIC_STREAM_SERIALISATION, 0, 1)

    def _function(self, name: str) -> Any:
        """Return a function of the library. Raises GpuError if an old driver lacks it."""
        function = self._functions.get(name)
        if function is None:
            try:
                function = self._library[name]
            except AttributeError as error:
                raise missing_function(name) from error
            function.argtypes, function.restype = SIGNATURES[name], c_int
            self._functions[name] = function
        return function

    def _call(self, name: str, *arguments: Any) -> None:
        code = self._function(name)(*arguments)
        if code != SUCCESS:
            raise error_of(code, name)

    def _handle(self, name: str, *arguments: Any) -> int:
        """Return the handle that a function writes to its first parameter."""
        handle = HANDLE()
        self._call(name, byref(handle), *arguments)
        return handle.value or 0

    def _number(self, name: str, *arguments: Any) -> int:
        """Return the int that a function writes to its first parameter."""
        number = c_int()
        self._call(name, byref(number), *arguments)
        return number.value

    def initialise(self) -> None:
        """Start the driver; see `Driver.initialise`."""
        self._call("cuInit", 0)

    def driver_version(self) -> int:
        """Return the newest CUDA version; see `Driver.driver_version`."""
        return self._number("cuDriverGetVersion")

    def device_count(self) -> int:
        """Return the number of visible devices."""
        return self._number("cuDeviceGetCount")

    def _device(self, index: int) -> int:
        return self._number("cuDeviceGet", index)

    def device_name(self, index: int) -> str:
        """Return the name of a device."""
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetName", name, _NAME_BYTES, self._device(index))
        return name.value.decode("utf-8", "replace")

    def device_bytes(self, index: int) -> int:
        """Return the bytes of a device's memory."""
        size = c_size_t()
        self._call("cuDeviceTotalMem_v2", byref(size), self._device(index))
        return size.value

    def device_attribute(self, index: int, attribute: Attribute) -> int:
        """Return a property of a device."""
        return self._number("cuDeviceGetAttribute", attribute.value, self._device(index))

    def retain_context(self, index: int) -> int:
        """Return the primary context of a device."""
        return self._handle("cuDevicePrimaryCtxRetain", self._device(index))

    def release_context(self, index: int) -> None:
        """Release the primary context of a device."""
        self._call("cuDevicePrimaryCtxRelease_v2", self._device(index))

    def set_context(self, context: int) -> None:
        """Make a context current in this thread."""
        self._call("cuCtxSetCurrent", context or None)

    def memory_info(self) -> tuple[int, int]:
        """Return the free and the total bytes of the current device."""
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes on the device."""
        address = ADDRESS()
        self._call("cuMemAlloc_v2", byref(address), size)
        return address.value

    def free(self, address: int) -> None:
        """Free device memory."""
        self._call("cuMemFree_v2", address)

    def allocate_host(self, size: int) -> int:
        """Return the address of `size` bytes of pinned memory."""
        return self._handle("cuMemHostAlloc", size, 0)

    def free_host(self, address: int) -> None:
        """Free pinned memory."""
        self._call("cuMemFreeHost", address)

    def copy_to_device(self, address: int, source: int, size: int, stream: int) -> None:
        """Copy pinned memory to the device."""
        self._call("cuMemcpyHtoDAsync_v2", address, source, size, stream)

    def copy_to_host(self, target: int, address: int, size: int, stream: int) -> None:
        """Copy device memory to pinned memory."""
        self._call("cuMemcpyDtoHAsync_v2", target, address, size, stream)

    def copy_on_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy device memory."""
        self._call("cuMemcpyDtoDAsync_v2", target, source, size, stream)

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        """Set device memory to a byte value."""
        self._call("cuMemsetD8Async", address, value, size, stream)

    def load_module(self, ptx: str) -> int:
        """Compile PTX for the current device; see `Driver.load_module`."""
        log, module = ctypes.create_string_buffer(_LOG_BYTES), HANDLE()
        options = (c_int * 2)(JIT_ERROR_LOG_BUFFER, JIT_ERROR_LOG_BUFFER_BYTES)
        values = (c_void_p * 2)(ctypes.addressof(log), _LOG_BYTES)
        name = "cuModuleLoadDataEx"
        code = self._function(name)(byref(module), ptx.encode(), 2, options, values)
        if code != SUCCESS:
            lines = log.value.decode("utf-8", "replace").split("\n")
            raise error_of(code, name, next((line.strip() for line in lines if line.strip()), ""))
        return module.value or 0

    def unload_module(self, module: int) -> None:
        """Unload a module."""
        self._call("cuModuleUnload", module)

    def find_kernel(self, module: int, name: str) -> int:
        """Return a kernel of a module."""
        return self._handle("cuModuleGetFunction", module, name.encode())

    def allow_shared_bytes(self, kernel: int, size: int) -> None:
        """Let a kernel use more than 48 KiB of dynamic shared memory."""
        self._call("cuFuncSetAttribute", kernel, FUNCTION_MAX_DYNAMIC_SHARED_BYTES, size)

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
        """Launch a kernel; see `Driver.launch`. The driver has copied the parameters when the call returns."""
        stored = [_PARAMETER_TYPES[letter](value) for letter, value in zip(letters, values, strict=True)]
        parameters = (c_void_p * len(stored))(*map(ctypes.addressof, stored))
        if overlap:
            config = LaunchConfig(grid, 1, 1, block, 1, 1, shared_bytes, stream, ctypes.pointer(self._serialise), 1)
            self._call("cuLaunchKernelEx", byref(config), kernel, parameters, None)
        else:  # Drivers before 11.8 have only this function.
            self._call("cuLaunchKernel", kernel, grid, 1, 1, block, 1, 1, shared_bytes, stream, parameters, None)

    def create_stream(self) -> int:
        """Return a stream that does not wait for others."""
        return self._handle("cuStreamCreate", STREAM_NON_BLOCKING)

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cuStreamDestroy_v2", stream)

    def synchronise_stream(self, stream: int) -> None:
        """Wait until all work on a stream has ended."""
        self._call("cuStreamSynchronize", stream)

    def stream_is_idle(self, stream: int) -> bool:
        """Return whether all work on a stream has ended."""
        code = self._function("cuStreamQuery")(stream)
        if code not in (SUCCESS, NOT_READY):
            raise error_of(code, "cuStreamQuery")
        return bool(code == SUCCESS)

    def wait_event(self, stream: int, event: int) -> None:
        """Let later work on a stream wait for an event."""
        self._call("cuStreamWaitEvent", stream, event, 0)

    def create_event(self, timed: bool = False) -> int:
        """Return an event."""
        return self._handle("cuEventCreate", EVENT_DEFAULT if timed else EVENT_DISABLE_TIMING)

    def destroy_event(self, event: int) -> None:
        """Destroy an event."""
        self._call("cuEventDestroy_v2", event)

    def record_event(self, event: int, stream: int) -> None:
        """Let an event happen after the work that is on a stream now."""
        self._call("cuEventRecord", event, stream)

    def synchronise_event(self, event: int) -> None:
        """Wait until an event has happened."""
        self._call("cuEventSynchronize", event)

    def milliseconds(self, start: int, end: int) -> float:
        """Return the time between two timed events."""
        elapsed = c_float()
        self._call("cuEventElapsedTime", byref(elapsed), start, end)
        return elapsed.value

    def begin_capture(self, stream: int) -> None:
        """Record work on a stream into a graph. Other threads may allocate memory meanwhile."""
        self._call("cuStreamBeginCapture_v2", stream, CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """Return the graph that was recorded."""
        graph = HANDLE()
        self._call("cuStreamEndCapture", stream, byref(graph))
        return graph.value or 0

    def destroy_graph(self, graph: int) -> None:
        """Destroy a graph."""
        self._call("cuGraphDestroy", graph)

    def instantiate(self, graph: int) -> int:
        """Return an executable of a graph."""
        return self._handle("cuGraphInstantiateWithFlags", graph, 0)

    def destroy_executable(self, executable: int) -> None:
        """Destroy an executable graph."""
        self._call("cuGraphExecDestroy", executable)

    def launch_graph(self, executable: int, stream: int) -> None:
        """Run an executable graph on a stream."""
        self._call("cuGraphLaunch", executable, stream)
