"""What a fake driver keeps of modules, streams, events and graphs, and the work that waits on its streams."""

from __future__ import annotations

from collections import deque
from functools import cache

from tests.cuda.interpreter.kernel import Kernel

SHARED_LIMIT = 48 << 10


@cache
def kernel_of(ptx, name):
    """Return a kernel of a PTX text, decoded for the interpreter."""
    return Kernel(ptx, name)


def interpret(ptx, name, memory, grid, threads, values, shared_bytes):
    """Run a kernel on the PTX interpreter."""
    before = set(memory.starts)
    kernel_of(ptx, name).run(memory, grid, threads, *values, shared_bytes=shared_bytes, races=False)
    for constants in set(memory.starts) - before:
        memory.free(constants)


class Stream:
    def __init__(self):
        self.work: deque = deque()
        self.captured: list | None = None
        self.broken = False


class Event:
    def __init__(self, timed):
        self.timed, self.pending, self.time = timed, None, None


class Module:
    def __init__(self, ptx):
        self.ptx = ptx


class Function:
    def __init__(self, module, ptx, name, letters, waits):
        self.module, self.ptx, self.name, self.letters, self.waits = module, ptx, name, letters, waits
        self.shared_limit = SHARED_LIMIT


class Graph:
    def __init__(self, work):
        self.work = tuple(work)


class Executable(Graph):
    pass


class Copy:
    def __init__(self, target, source):
        self.target, self.source = target, source

    def ready(self):
        return True

    def run(self, driver):
        self.target()[:] = self.source()


class Execution:
    def __init__(self, function, grid, block, shared_bytes, values):
        self.function, self.grid, self.block, self.shared_bytes = function, grid, block, shared_bytes
        self.values = values

    def ready(self):
        return True

    def run(self, driver):
        number, driver.launched = driver.launched, driver.launched + 1
        driver.launches.append((self.function.name, self.grid))
        if driver.lose is not None and driver.lose[0] == number:
            driver.lost = driver.lose[1]
            return
        function = self.function
        arguments = (function.ptx, function.name, driver.device, self.grid, self.block, self.values)
        driver.execute(*arguments, self.shared_bytes)


class Record:
    def __init__(self, event):
        self.event, self.done = event, False

    def ready(self):
        return True

    def run(self, driver):
        self.done, self.event.time = True, driver.clock


class Wait:
    def __init__(self, record):
        self.record = record

    def ready(self):
        return self.record.done

    def run(self, driver):
        pass
