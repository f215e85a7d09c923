"""Every call of a typical run fails once with every kind of code: one line, an exit code, and nothing leaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qwchat.cli.exit_codes import ExitCode, exit_code_of, is_expected
from qwchat.cuda.device import OpenGpu, find_gpus, select_gpu
from qwchat.cuda.driver_errors import LOST
from qwchat.cuda.graph import Graphs
from qwchat.cuda.host_access import HostAccess
from qwchat.cuda.launch import prepare
from qwchat.cuda.memory import DeviceMemory, Stream
from qwchat.cuda.modules import Modules
from qwchat.cuda.upload import Uploader
from qwchat.errors import GpuLostError, QwchatError
from tests.cuda.fake_driver import FakeDriver
from tests.cuda.python_kernels import declare, executor
from tests.cuda.test_launch import KERNELS
from tests.tiers import count

ENDING = {
    *("destroy_graph", "destroy_executable", "unload_module", "destroy_stream", "destroy_event", "free", "free_host"),
    *("set_context", "release_context"),
}


def last_wait(log: list[str]) -> int:
    """Return the number of the call that waits for the work on a decoder's stream before everything is destroyed."""
    return max(number for number, call in enumerate(log) if call == "synchronise_stream")


DATA = np.arange(2048, dtype=np.float32)


def run(driver: FakeDriver, folder: Path) -> float:
    """Find, open, upload, launch directly and as a graph, download, close. Return the last value."""
    with OpenGpu(driver, select_gpu(find_gpus(driver), 0)) as gpu:
        memory, modules, graphs = DeviceMemory(gpu), Modules(gpu, folder), Graphs(gpu)
        stream = Stream(driver)
        gpu.on_close(stream.destroy)
        access = HostAccess(gpu, stream)
        weights = memory.allocate(DATA.nbytes, "weights")
        with Uploader(driver, 4096) as uploader:
            uploader.upload(weights.address, DATA)
        launch = prepare(modules, "negate", 1, {"data": weights.address, "count": DATA.size}, shared_bytes=50 << 10)
        launch.run(driver, stream.handle)
        for _ in range(2):
            graphs.run("key", lambda: [launch], stream)
        return float(access.read(weights.address, DATA.nbytes).view(np.float32)[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ptx")
    declare(folder, KERNELS)
    return folder


def new_driver(**options: object) -> FakeDriver:
    return FakeDriver(execute=executor(KERNELS), **options)


def calls(folder: Path) -> int:
    driver = new_driver()
    assert run(driver, folder) == -2047.0
    assert driver.leaked == []
    return len(driver.log)


def test_the_run_without_a_failure_makes_many_kinds_of_calls(folder: Path) -> None:
    driver = new_driver()
    assert run(driver, folder) == -2047.0
    assert driver.leaked == []
    assert len(set(driver.log)) == 29


def outcome(driver: FakeDriver, folder: Path) -> QwchatError | None:
    """Return the expected error of a run, or None."""
    try:
        run(driver, folder)
    except QwchatError as error:
        return error
    return None


@pytest.mark.parametrize("code", [1, 2, 46, 100, 218, 700, 719, 999])
def test_each_call_may_fail(folder: Path, code: int) -> None:
    for number in range(0, calls(folder), count(1, 3)):
        driver = new_driver(fail={number: code})
        error, call = outcome(driver, folder), driver.log[number]
        if error is None:
            assert call in ENDING, "only what the result does not need may fail without an error"
        else:
            assert is_expected(error)
            assert "\n" not in str(error)
            assert f"CUDA error {code} in " in str(error)
            assert exit_code_of(error) is (ExitCode.MEMORY if code == 2 else ExitCode.RUNTIME)
            assert isinstance(error, GpuLostError) == (code in LOST)
        if code not in LOST:
            assert len(driver.leaked) <= (call in ENDING), f"{call}: only what could not be destroyed is left"
        assert driver.retained.total() == (call == "release_context"), "the context is released"


@pytest.mark.parametrize("launch", range(3))
def test_a_kernel_may_lose_the_context(folder: Path, launch: int) -> None:
    driver = new_driver(lose=(launch, 700))
    with pytest.raises(GpuLostError, match="the GPU stopped: illegal address"):
        run(driver, folder)
    assert not driver.retained.total()
