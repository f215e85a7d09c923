"""Finding, choosing and opening GPUs, without a GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qwchat.cuda.device import OpenGpu, find_gpus, select_gpu
from qwchat.cuda.libcuda import LibCuda
from qwchat.errors import GpuError, UsageError
from tests.cuda.fake_driver import CONTEXT_BYTES, FakeDriver

H100 = {"name": "NVIDIA H100 80GB HBM3", "memory": 80 << 30, "multiprocessors": 132}


def test_a_gpu_is_described() -> None:
    (gpu,) = find_gpus(FakeDriver(**H100, version=12080))
    assert (gpu.index, gpu.name, gpu.total_memory) == (0, "NVIDIA H100 80GB HBM3", 80 << 30)
    assert (gpu.capability, gpu.multiprocessors, gpu.driver_version) == ((9, 0), 132, 12080)
    assert gpu.bandwidth == 2 * 2_619_000_000 * 5120 // 8, "two transfers per clock, 3.35 TB/s"
    assert (gpu.l2_bytes, gpu.shared_bytes) == (50 << 20, 227 << 10)


@pytest.mark.parametrize(
    ("capability", "version", "target"),
    [
        ((7, 5), 11040, 75),
        ((8, 0), 11040, 80),
        ((8, 6), 12040, 80),
        ((8, 9), 12040, 80),
        ((9, 0), 11080, 90),
        ((9, 0), 11070, 80),  # It cannot compile the PTX for sm_90.
        ((10, 0), 12080, 90),
        ((12, 0), 13000, 90),
    ],
)
def test_the_newest_ptx_that_device_and_driver_can_run_is_chosen(
    capability: tuple[int, int], version: int, target: int
) -> None:
    assert find_gpus(FakeDriver(capability=capability, version=version))[0].target == target


def test_an_old_gpu_and_an_old_driver_are_named() -> None:
    old_gpu = find_gpus(FakeDriver(name="Tesla V100", capability=(7, 0)))[0]
    with pytest.raises(GpuError, match=r"^Tesla V100 has compute capability 7\.0, but 7\.5 is needed"):
        OpenGpu(FakeDriver(), old_gpu)
    old_driver = FakeDriver(version=11020)
    with pytest.raises(GpuError, match=r"supports CUDA 11\.2, but 11\.4 is needed: update the NVIDIA driver"):
        OpenGpu(old_driver, find_gpus(old_driver)[0])
    assert not old_driver.retained.total()


def test_an_index_that_does_not_exist_names_those_that_do() -> None:
    gpus = find_gpus(FakeDriver(count=2, name="RTX"))
    assert select_gpu(gpus, 1).index == 1
    assert select_gpu(gpus, None).index == 0, "both are equally fast"
    for index in (2, -1):
        with pytest.raises(UsageError, match=r"does not exist: choose from cuda:0 \(RTX\), cuda:1 \(RTX\)$"):
            select_gpu(gpus, index)


def test_a_driver_without_devices_is_an_error() -> None:
    with pytest.raises(GpuError, match=r"found no GPU .*: check CUDA_VISIBLE_DEVICES, or use device='cpu'$"):
        find_gpus(FakeDriver(count=0))


def test_no_driver_is_one_line_with_a_remedy() -> None:
    with pytest.raises(GpuError, match=r"^there is no NVIDIA driver \(libabsent\.so was not found\): install it"):
        LibCuda("libabsent.so")


def test_opening_and_closing_calls_in_order() -> None:
    driver = FakeDriver()
    closed: list[str] = []
    gpu = find_gpus(driver)[0]
    with OpenGpu(driver, gpu) as opened:
        assert opened.free_bytes() == (8 << 30) - CONTEXT_BYTES
        opened.on_close(lambda: closed.append("first"))
        opened.on_close(lambda: closed.append("last"))
    opened.close()
    assert closed == ["last", "first"]
    assert not driver.retained.total()
    assert driver.log[-2:] == ["set_context", "release_context"]


def test_the_host_code_imports_little() -> None:
    code = (
        "import sys; import qwchat.cuda.libcuda, qwchat.cuda.device, qwchat.cuda.build;"
        "print([name for name in sys.modules if name.split('.')[0] in ('numba', 'llvmlite', 'cuda')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
