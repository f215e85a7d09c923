"""Each code of the driver is one line with a remedy, and has an exit code."""

from __future__ import annotations

import pytest

from qwchat.cli.exit_codes import ExitCode, exit_code_of
from qwchat.cuda.driver_errors import LOST, error_of, too_little_memory
from qwchat.errors import GpuError, GpuLostError, GpuMemoryError, UsageError
from tests.cuda.fake_driver import FakeDriver

CPU = ", or use device='cpu'"


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (34, "the libcuda that was found is a stub of the CUDA toolkit {}: install the NVIDIA driver"),
        (35, "the NVIDIA driver is too old {}: update the NVIDIA driver"),
        (46, "the GPU is used exclusively by another process {}: end that process"),
        (100, "the NVIDIA driver found no GPU {}: check CUDA_VISIBLE_DEVICES"),
        (803, "libcuda and the kernel module of the NVIDIA driver differ in version {}: restart the machine"),
        (999, "the NVIDIA driver failed for an unknown reason {}: restart the machine"),
        (1, "the NVIDIA driver failed {}: report this as a bug"),
    ],
)
def test_a_code_is_one_line_with_a_remedy(code: int, line: str) -> None:
    error = error_of(code, "f")
    assert str(error) == line.format(f"(CUDA error {code} in f)") + CPU
    assert type(error) is GpuError
    assert exit_code_of(error) is ExitCode.RUNTIME


@pytest.mark.parametrize("code", [200, 209, 218, 222])
def test_refused_ptx_shows_the_log(code: int) -> None:
    text = str(error_of(code, "cuModuleLoadDataEx", "ptxas fatal: bad"))
    assert f"(CUDA error {code} in cuModuleLoadDataEx, ptxas fatal: bad): update the NVIDIA driver" in text


@pytest.mark.parametrize("code", sorted(LOST))
def test_a_lost_context_is_an_error_of_its_own(code: int) -> None:
    error = error_of(code, "cuStreamSynchronize")
    assert type(error) is GpuLostError
    assert str(error).startswith(f"the GPU stopped: {LOST[code]} (CUDA error {code} in cuStreamSynchronize): restart")
    assert exit_code_of(error) is ExitCode.RUNTIME


def test_memory_and_index_have_their_exit_codes() -> None:
    for memory in (error_of(2, "cuMemAlloc_v2"), too_little_memory(3 << 30, 1 << 30, "the KV cache")):
        assert type(memory) is GpuMemoryError
        assert exit_code_of(memory) is ExitCode.MEMORY
        assert str(memory).endswith(": choose a smaller gpu_layers or context, or use device='cpu'")
    assert str(memory).startswith("the KV cache needs 3 GiB of GPU memory, but only 1 GiB are free: ")
    index = error_of(101, "cuDeviceGet")
    assert type(index) is UsageError
    assert exit_code_of(index) is ExitCode.USAGE


def test_after_a_lost_context_every_call_fails_in_the_same_way() -> None:
    driver = FakeDriver(fail={1: 700})
    driver.initialise()
    for _ in range(2):
        with pytest.raises(GpuLostError, match="CUDA error 700"):
            driver.device_count()
