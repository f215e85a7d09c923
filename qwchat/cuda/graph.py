"""Graphs: a list of launches is captured once and replayed with one call of the driver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from qwchat.cuda.device import OpenGpu
from qwchat.cuda.launch import Step, run_all
from qwchat.cuda.memory import Stream
from qwchat.errors import QwchatError


class Graphs:
    """Captured lists of steps by key, destroyed when the device is closed.

    The parameters of a launch are fixed when it is captured; what changes from replay to replay is in device memory.
    """

    def __init__(self, gpu: OpenGpu) -> None:
        self._driver = gpu.driver
        self._executables: dict[tuple[object, ...], int] = {}
        gpu.on_close(self.clear)

    def run(self, key: tuple[object, ...], steps: Callable[[], Iterable[Step]], stream: Stream) -> None:
        """Replay the graph of `key` on a stream; the first time, capture the steps that `steps` returns."""
        executable = self._executables.get(key)
        if executable is None:
            # Kernels are loaded before the capture, in which the driver loads nothing.
            executable = self._executables[key] = self._capture(list(steps()), stream)
        self._driver.launch_graph(executable, stream.handle)

    def _capture(self, steps: Sequence[Step], stream: Stream) -> int:
        self._driver.begin_capture(stream.handle)
        try:
            run_all(steps, self._driver, stream.handle)
        except BaseException:
            with suppress(QwchatError):
                self._destroy_graph(self._driver.end_capture(stream.handle))
            raise
        graph = self._driver.end_capture(stream.handle)
        try:
            return self._driver.instantiate(graph)
        finally:
            self._destroy_graph(graph)

    def _destroy_graph(self, graph: int) -> None:
        """Destroy a graph; ignore an error, which must not lose the executable."""
        with suppress(QwchatError):
            if graph:
                self._driver.destroy_graph(graph)

    def remove(self, matches: Callable[[tuple[object, ...]], bool]) -> None:
        """Destroy the graphs whose keys match, such as those of a cache that was deleted."""
        for key in [key for key in self._executables if matches(key)]:
            executable = self._executables.pop(key)
            self._driver.destroy_executable(executable)

    def clear(self) -> None:
        """Destroy all graphs."""
        while self._executables:
            _, executable = self._executables.popitem()
            with suppress(QwchatError):
                self._driver.destroy_executable(executable)
