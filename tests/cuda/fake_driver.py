"""A driver without a GPU: executes launches on the PTX interpreter, and work on streams as late as it may.

Work on a stream waits until the stream is synchronised, or until a call lets some of it run, in an order of the streams
that a seed decides. So a missing wait shows as a wrong result. What a real driver leaves undefined raises MisuseError.
"""

from __future__ import annotations

import random
import re
import threading
from collections import Counter

from qwchat.cuda.driver import Attribute
from qwchat.cuda.driver_errors import LOST, error_of
from tests.cuda.fake_memory import DeviceArrays, HostArrays, MisuseError
from tests.cuda.fake_work import (
    SHARED_LIMIT,
    Copy,
    Event,
    Executable,
    Execution,
    Function,
    Graph,
    Module,
    Record,
    Stream,
    Wait,
    interpret,
)

CONTEXT_BYTES = 400 << 20
PTX_VERSIONS = {11040: 74, 11050: 75, 11060: 76, 11070: 77, 11080: 78, 12000: 80}
"""CUDA version of a driver -> newest PTX version that it compiles, 10 * major + minor."""
LETTERS = {"u64": "l", "b64": "l", "u32": "i", "s32": "i", "b32": "i", "f32": "f"}


class FakeDriver:
    """Implements `qwchat.cuda.driver.Driver`.

    Args:
        name: name of each device.
        memory: bytes of each device.
        capability: compute capability.
        multiprocessors: number of them.
        version: the driver's.
        count: number of devices.
        execute: runs a kernel; see `interpret`.
        seed: decides the order in which streams progress.
        fail: number of a call, from 0 -> code that it returns instead of doing anything.
        lose: (number of a launch, from 0; code): the context is lost when this launch executes.
    """

    def __init__(
        self,
        *,
        name="NVIDIA Fake",
        memory=8 << 30,
        capability=(9, 0),
        multiprocessors=4,
        version=12040,
        count=1,
        execute=interpret,
        seed=0,
        fail=None,
        lose=None,
    ):
        self.name, self.memory, self.version, self.count = name, memory, version, count
        self.attributes = {
            Attribute.MULTIPROCESSORS: multiprocessors,
            Attribute.MEMORY_CLOCK_KHZ: 2_619_000,
            Attribute.MEMORY_BUS_BITS: 5120,
            Attribute.L2_BYTES: 50 << 20,
            Attribute.CAPABILITY_MAJOR: capability[0],
            Attribute.CAPABILITY_MINOR: capability[1],
            Attribute.SHARED_BYTES_PER_BLOCK: 227 << 10 if capability >= (8, 0) else 64 << 10,
        }
        self.execute, self.random = execute, random.Random(seed)
        self.fail, self.lose, self.lost = dict(fail or {}), lose, 0
        self.log: list[str] = []
        self.launches: list[tuple[str, int]] = []
        self.leaked: list[str] = []
        self.device, self.host = DeviceArrays(), HostArrays()
        self.retained: Counter = Counter()
        self.objects: dict[int, object] = {}
        self._handles = iter(range(1, 1 << 30))
        self._started = False
        self._thread = threading.local()
        self.clock = self.launched = 0

    # What every call does first.

    def _begin(self, call, *, context=True, capture=False, progress=True, index=0):
        number = len(self.log)
        self.log.append(call)
        if self.lost:
            raise error_of(self.lost, call)
        if number in self.fail:
            code = self.fail[number]
            self.lost = code if code in LOST else 0
            raise error_of(code, call)
        if call != "initialise" and not self._started:
            raise error_of(3, call)
        if index and not 0 <= index < self.count:
            raise error_of(101, call)
        if context and not self.retained[getattr(self._thread, "context", None)]:
            raise error_of(201, call)
        capturing = [each for each in self.objects.values() if isinstance(each, Stream) and each.captured is not None]
        if context and capturing and not capture:
            capturing[0].broken = True
            raise error_of(900, call)
        if progress:
            for _ in range(self.random.randrange(3)):
                self._step()
            if self.lost:
                raise error_of(self.lost, call)

    def _add(self, thing):
        handle = next(self._handles) * 16
        self.objects[handle] = thing
        return handle

    def _get(self, handle, kind):
        thing = self.objects.get(handle)
        if not isinstance(thing, kind):
            raise MisuseError(f"{handle} is not a live {kind.__name__}")
        return thing

    def _remove(self, handle, kind):
        self._get(handle, kind)
        del self.objects[handle]

    # Work on streams.

    def _enqueue(self, handle, work):
        stream = self._get(handle, Stream)
        (stream.work if stream.captured is None else stream.captured).append(work)

    def _step(self):
        """Do one piece of work of a random stream. Return whether there was one that need not wait."""
        ready = [
            each for each in self.objects.values() if isinstance(each, Stream) and each.work and each.work[0].ready()
        ]
        if not ready or self.lost:
            return False
        self.random.choice(ready).work.popleft().run(self)
        self.clock += 1
        return True

    def _finish(self, call, done):
        while not done():
            if not self._step() and not self.lost:
                raise MisuseError("streams wait for each other")
            if self.lost:
                raise error_of(self.lost, call)

    # Devices and contexts.

    def initialise(self):
        self._begin("initialise", context=False)
        self._started = True

    def driver_version(self):
        self._begin("driver_version", context=False)
        return self.version

    def device_count(self):
        self._begin("device_count", context=False)
        return self.count

    def device_name(self, index):
        self._begin("device_name", context=False, index=index)
        return self.name

    def device_bytes(self, index):
        self._begin("device_bytes", context=False, index=index)
        return self.memory

    def device_attribute(self, index, attribute):
        self._begin("device_attribute", context=False, index=index)
        return self.attributes[attribute]

    def retain_context(self, index):
        self._begin("retain_context", context=False, index=index)
        self.retained[index + 1] += 1
        return index + 1

    def release_context(self, index):
        # A lost context can be released, too.
        lost, self.lost = self.lost, 0
        try:
            self._begin("release_context", context=False, progress=False)
        finally:
            self.lost = self.lost or lost
        if not self.retained[index + 1]:
            raise MisuseError("the context was not retained")
        self.retained[index + 1] -= 1
        if not self.lost:
            self.leaked += self.live()

    def live(self):
        """Return what exists on the device or for it, apart from contexts."""
        kinds = [type(each).__name__.lower() for each in self.objects.values() if not isinstance(each, Function)]
        memory = [f"{size} bytes" for size in self.device.live.values()]
        return kinds + memory + [f"{array.size} host bytes" for array in self.host.live.values()]

    def set_context(self, context):
        self._begin("set_context", context=False)
        if context and not self.retained[context]:
            raise error_of(201, "set_context")
        self._thread.context = context

    # Memory.

    def memory_info(self):
        self._begin("memory_info")
        return self.memory - CONTEXT_BYTES - sum(self.device.live.values()), self.memory

    def allocate(self, size):
        self._begin("allocate")
        if size <= 0:
            raise error_of(1, "allocate")
        if size > self.memory - CONTEXT_BYTES - sum(self.device.live.values()):
            raise error_of(2, "allocate")
        return self.device.allocate(size)

    def free(self, address):
        self._begin("free")
        self.device.free(address)

    def allocate_host(self, size):
        self._begin("allocate_host")
        return self.host.allocate(size)

    def free_host(self, address):
        self._begin("free_host")
        self.host.free(address)

    def copy_to_device(self, address, source, size, stream):
        self._begin("copy_to_device", capture=True)
        self.device.bytes(address, size)
        self.host.bytes(source, size)
        self._enqueue(stream, Copy(lambda: self.device.bytes(address, size), lambda: self.host.bytes(source, size)))

    def copy_to_host(self, target, address, size, stream):
        self._begin("copy_to_host", capture=True)
        self.device.bytes(address, size)
        self.host.bytes(target, size)
        self._enqueue(stream, Copy(lambda: self.host.bytes(target, size), lambda: self.device.bytes(address, size)))

    def copy_on_device(self, target, source, size, stream):
        self._begin("copy_on_device", capture=True)
        if abs(target - source) < size:
            raise MisuseError("the ranges overlap")
        self._enqueue(stream, Copy(lambda: self.device.bytes(target, size), lambda: self.device.bytes(source, size)))

    def fill(self, address, value, size, stream):
        self._begin("fill", capture=True)
        self.device.bytes(address, size)
        self._enqueue(stream, Copy(lambda: self.device.bytes(address, size), lambda: value))

    # Modules and launches.

    def load_module(self, ptx):
        self._begin("load_module")
        version, target = re.search(r"\.version\s+(\d+)\.(\d+)", ptx), re.search(r"\.target\s+sm_(\d+)", ptx)
        if not version or not target:
            raise error_of(218, "load_module", "ptxas fatal: no version or target")
        newest = max((known for driver, known in PTX_VERSIONS.items() if driver <= self.version), default=0)
        if 10 * int(version[1]) + int(version[2]) > newest:
            raise error_of(222, "load_module", f"unsupported .version {version[1]}.{version[2]}")
        major, minor = (self.attributes[each] for each in (Attribute.CAPABILITY_MAJOR, Attribute.CAPABILITY_MINOR))
        if int(target[1]) > 10 * major + minor:
            raise error_of(209, "load_module")
        return self._add(Module(ptx))

    def unload_module(self, module):
        self._begin("unload_module")
        self._remove(module, Module)
        for handle, each in list(self.objects.items()):
            if isinstance(each, Function) and each.module == module:
                del self.objects[handle]

    def find_kernel(self, module, name):
        self._begin("find_kernel")
        ptx = self._get(module, Module).ptx
        head = re.search(rf"\.entry\s+{re.escape(name)}\s*\((.*?)\)", ptx, re.S)
        if not head:
            raise error_of(500, "find_kernel")
        letters = "".join(LETTERS[kind] for kind in re.findall(r"\.param\s+(?:\.align \d+ )?\.(\w+)", head[1]))
        body = ptx[head.end() :].partition("\n}")[0]
        return self._add(Function(module, ptx, name, letters, "griddepcontrol.wait" in body))

    def allow_shared_bytes(self, kernel, size):
        self._begin("allow_shared_bytes")
        if size > self.attributes[Attribute.SHARED_BYTES_PER_BLOCK]:
            raise error_of(1, "allow_shared_bytes")
        self._get(kernel, Function).shared_limit = max(size, SHARED_LIMIT)

    def launch(self, kernel, grid, block, shared_bytes, stream, letters, values, overlap):
        self._begin("launch", capture=True)
        function = self._get(kernel, Function)
        if function.letters != letters or len(values) != len(letters):
            raise MisuseError(f"{function.name} has the parameters {function.letters}, not {letters}")
        if not 1 <= block <= 1024 or grid < 1 or shared_bytes > function.shared_limit:
            raise error_of(1, "launch")
        if overlap and (not function.waits or self.attributes[Attribute.CAPABILITY_MAJOR] < 9):
            raise MisuseError(f"{function.name} does not wait for the previous kernel")
        self._enqueue(stream, Execution(function, grid, block, shared_bytes, tuple(values)))

    # Streams and events.

    def create_stream(self):
        self._begin("create_stream")
        return self._add(Stream())

    def destroy_stream(self, stream):
        self._begin("destroy_stream")
        work = self._get(stream, Stream).work
        self._finish("destroy_stream", lambda: not work)
        self._remove(stream, Stream)

    def synchronise_stream(self, stream):
        self._begin("synchronise_stream")
        work = self._get(stream, Stream).work
        self._finish("synchronise_stream", lambda: not work)

    def stream_is_idle(self, stream):
        self._begin("stream_is_idle")
        return not self._get(stream, Stream).work

    def wait_event(self, stream, event):
        self._begin("wait_event", capture=True)
        pending = self._get(event, Event).pending
        if pending is not None:
            self._enqueue(stream, Wait(pending))

    def create_event(self, timed=False):
        self._begin("create_event")
        return self._add(Event(timed))

    def destroy_event(self, event):
        self._begin("destroy_event")
        self._remove(event, Event)

    def record_event(self, event, stream):
        self._begin("record_event", capture=True)
        recorded = self._get(event, Event)
        recorded.pending = Record(recorded)
        self._enqueue(stream, recorded.pending)

    def synchronise_event(self, event):
        self._begin("synchronise_event")
        pending = self._get(event, Event).pending
        self._finish("synchronise_event", lambda: pending is None or pending.done)

    def milliseconds(self, start, end):
        self._begin("milliseconds")
        events = [self._get(each, Event) for each in (start, end)]
        if not all(each.timed and each.pending and each.pending.done for each in events):
            raise MisuseError("the events have no times, or have not happened")
        return float(events[1].time - events[0].time)

    # Graphs.

    def begin_capture(self, stream):
        self._begin("begin_capture")
        self._get(stream, Stream).captured = []

    def end_capture(self, stream):
        captured = self._get(stream, Stream)
        work, broken = captured.captured, captured.broken
        captured.captured, captured.broken = None, False  # Even if this call fails.
        self._begin("end_capture", capture=True)
        if work is None or broken:
            raise error_of(901, "end_capture")
        return self._add(Graph(work))

    def destroy_graph(self, graph):
        self._begin("destroy_graph")
        self._remove(graph, Graph)

    def instantiate(self, graph):
        self._begin("instantiate")
        return self._add(Executable(self._get(graph, Graph).work))

    def destroy_executable(self, executable):
        self._begin("destroy_executable")
        self._remove(executable, Executable)

    def launch_graph(self, executable, stream):
        self._begin("launch_graph", capture=True)
        for work in self._get(executable, Executable).work:
            self._enqueue(stream, work)
