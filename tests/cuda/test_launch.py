"""Launches by keyword, and graphs, on kernels that are Python functions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwchat.cuda.device import OpenGpu, find_gpus
from qwchat.cuda.graph import Graphs
from qwchat.cuda.launch import Launch, prepare, run_all
from qwchat.cuda.memory import DeviceMemory, Stream
from qwchat.cuda.modules import Modules
from qwchat.errors import GpuError
from tests.cuda.fake_driver import FakeDriver
from tests.cuda.fake_memory import MisuseError
from tests.cuda.python_kernels import declare, executor


def scale(memory: Any, grid: int, threads: int, data: l, factor: f, step: l) -> None:  # type: ignore[name-defined] # noqa: F821
    counter = memory.bytes(step, 4).view(np.int32)
    counter += 1
    values = memory.bytes(data, 4 * grid).view(np.float32)
    values *= np.float32(factor)


def negate(memory: Any, grid: int, threads: int, data: l, count: i) -> None:  # type: ignore[name-defined] # noqa: F821
    values = memory.bytes(data, 4 * count).view(np.float32)
    values *= np.float32(-1)


KERNELS = (scale, negate)


class Bench:
    """A device with kernels, a buffer of 8 floats and a counter."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.driver = FakeDriver(execute=executor(KERNELS), **options)
        self.gpu = OpenGpu(self.driver, find_gpus(self.driver)[0])
        self.memory = DeviceMemory(self.gpu)
        self.modules = Modules(self.gpu, folder)
        self.stream, self.graphs = Stream(self.driver), Graphs(self.gpu)
        self.gpu.on_close(self.stream.destroy)
        self.data, self.step = (self.memory.allocate(32, "x").address for _ in range(2))
        self.floats[:] = np.arange(8)
        self.driver.device.bytes(self.step, 4).view(np.int32)[0] = 0

    @property
    def floats(self) -> Any:
        return self.driver.device.bytes(self.data, 32).view(np.float32)

    def scale(self, **changed: Any) -> Launch:
        parameters = {"data": self.data, "factor": 2.0, "step": self.step} | changed
        return prepare(self.modules, "scale", 8, parameters)

    def negate(self, **options: Any) -> Launch:
        return prepare(self.modules, "negate", 1, {"data": self.data, "count": 8}, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    declare(tmp_path, KERNELS)
    return tmp_path


@pytest.fixture
def bench(folder: Path) -> Iterator[Bench]:
    bench = Bench(folder)
    yield bench
    bench.gpu.close()
    assert bench.driver.leaked == []
    assert not bench.driver.retained.total()


def test_launches_run_in_order(bench: Bench) -> None:
    run_all([bench.scale(), bench.negate(overlap=True)], bench.driver, bench.stream.handle)
    bench.stream.synchronise()
    assert bench.floats.tolist() == [-2.0 * each for each in range(8)]
    assert bench.driver.launches == [("scale", 8), ("negate", 1)]


def test_only_the_units_that_are_needed_are_loaded(bench: Bench) -> None:
    bench.scale()
    bench.scale()
    assert bench.driver.log.count("load_module") == 1
    bench.negate()
    assert bench.driver.log.count("load_module") == 2
    assert bench.modules.has("negate")
    assert not bench.modules.has("add")


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"factor": 1}, None, ""),
        ({"factor": "1"}, TypeError, "scale: factor must be a number, not '1'"),
        ({"data": 1.0}, TypeError, r"scale: data must be an integer, not 1\.0"),
        ({"data": -1}, ValueError, "scale: data is out of range: -1"),
        ({"other": 1}, TypeError, r"missing parameters \[\], unknown parameters \['other'\]"),
    ],
)
def test_parameters_are_checked(bench: Bench, changed: Any, error: type[Exception] | None, message: str) -> None:
    if error is None:
        assert bench.scale(**changed).values == (bench.data, 1.0, bench.step)
        return
    with pytest.raises(error, match=message):
        bench.scale(**changed)


def test_missing_parameters_and_kernels_and_empty_grids_are_errors(bench: Bench) -> None:
    with pytest.raises(TypeError, match=r"negate: missing parameters \['count'\], unknown parameters \[\]"):
        prepare(bench.modules, "negate", 1, {"data": bench.data})
    with pytest.raises(ValueError, match="negate: count is out of range: 2147483648"):
        prepare(bench.modules, "negate", 1, {"data": bench.data, "count": 2147483648})
    with pytest.raises(ValueError, match="negate: a grid of 0 blocks"):
        prepare(bench.modules, "negate", 0, {"data": bench.data, "count": 1})
    with pytest.raises(KeyError, match="absent"):
        prepare(bench.modules, "absent", 1, {})


def test_shared_memory_beyond_48_kib_is_allowed_once(bench: Bench) -> None:
    for size in (64 << 10, 60 << 10, 64 << 10):
        bench.negate(shared_bytes=size).run(bench.driver, bench.stream.handle)
    bench.stream.synchronise()
    assert bench.driver.log.count("allow_shared_bytes") == 1
    with pytest.raises(GpuError, match="CUDA error 1 in allow_shared_bytes"):
        bench.negate(shared_bytes=300 << 10)


def test_a_graph_is_captured_once_and_reads_the_memory_at_each_replay(bench: Bench) -> None:
    built: list[str] = []

    def launches() -> list[Launch]:
        built.append("")
        return [bench.scale(), bench.negate(overlap=True)]

    for replay in range(1, 4):
        bench.graphs.run(("decode", 1), launches, bench.stream)
        bench.stream.synchronise()
        assert bench.floats.tolist() == [each * (-2.0) ** replay for each in range(8)]
    assert bench.driver.device.bytes(bench.step, 4).view(np.int32)[0] == 3
    assert built == [""]
    assert (bench.driver.log.count("instantiate"), bench.driver.log.count("launch_graph")) == (1, 3)
    bench.graphs.run(("decode", 2), lambda: [bench.negate()], bench.stream)
    bench.stream.synchronise()
    bench.graphs.remove(lambda key: key == ("decode", 1))
    bench.graphs.run(("decode", 1), launches, bench.stream)
    assert built == ["", ""]


def test_a_capture_that_fails_leaves_the_stream_usable(bench: Bench) -> None:
    def launches() -> list[Launch]:
        launch = bench.negate()
        bench.driver.fail[len(bench.driver.log) + 1] = 701
        return [launch]

    with pytest.raises(GpuError, match="CUDA error 701 in launch"):
        bench.graphs.run("key", launches, bench.stream)
    bench.graphs.run("key", lambda: [bench.negate()], bench.stream)
    bench.stream.synchronise()
    assert bench.floats[1] == -1


def test_the_fake_driver_refuses_calls_that_end_a_capture(bench: Bench) -> None:
    bench.driver.begin_capture(bench.stream.handle)
    with pytest.raises(GpuError, match="CUDA error 900 in allocate"):
        bench.memory.allocate(1, "x")
    with pytest.raises(GpuError, match="CUDA error 901 in end_capture"):
        bench.driver.end_capture(bench.stream.handle)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"version": "8.9"}, "error 222 in load_module, unsupported"),
        ({"written_target": 100}, "error 209 in load_module"),
    ],
)
def test_ptx_that_the_driver_cannot_compile_is_refused(tmp_path: Path, declared: Any, message: str) -> None:
    declare(tmp_path, KERNELS, **declared)
    bench = Bench(tmp_path)
    with pytest.raises(GpuError, match=message):
        bench.scale()
    bench.gpu.close()
    assert bench.driver.leaked == []


def test_the_fake_driver_shows_a_kernel_that_does_not_wait(tmp_path: Path) -> None:
    declare(tmp_path, KERNELS, overlap=False)
    bench = Bench(tmp_path)
    with pytest.raises(MisuseError, match="negate does not wait"):
        bench.negate(overlap=True).run(bench.driver, bench.stream.handle)
    bench.gpu.close()
