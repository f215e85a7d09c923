"""The ctypes layer against a libcuda in C that records its arguments, compiled with the header's types written out."""

from __future__ import annotations

import ctypes
import inspect
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qwchat.cuda.driver import Attribute, Driver
from qwchat.cuda.libcuda import LibCuda
from qwchat.cuda.libcuda_types import SIGNATURES, LaunchAttribute, LaunchConfig
from qwchat.errors import GpuError, GpuLostError

SOURCE = Path(__file__).with_name("stub_libcuda.c")
CALLS: list[tuple[str, tuple[Any, ...], Any, str]] = [
    ("initialise", (), None, "cuInit 0"),
    ("driver_version", (), 12040, "cuDriverGetVersion"),
    ("device_count", (), 3, "cuDeviceGetCount"),
    ("device_name", (2,), "Stub GPU", "cuDeviceGetName 256 72"),
    ("device_bytes", (1,), 141 << 30, "cuDeviceTotalMem_v2 71"),
    ("device_attribute", (1, Attribute.MULTIPROCESSORS), 1016, "cuDeviceGetAttribute 16 71"),
    ("retain_context", (0,), 0x7FFFF00000010, "cuDevicePrimaryCtxRetain 70"),
    ("release_context", (0,), None, "cuDevicePrimaryCtxRelease_v2 70"),
    ("set_context", (0x7FFFF00000010,), None, "cuCtxSetCurrent 7ffff00000010"),
    ("set_context", (0,), None, "cuCtxSetCurrent 0"),
    ("memory_info", (), (5 << 32, 7 << 32), "cuMemGetInfo_v2"),
    ("allocate", (9 << 32,), 0x7FABCDEF0000, f"cuMemAlloc_v2 {9 << 32}"),
    ("free", (0xFFFFABCDEF0000,), None, "cuMemFree_v2 ffffabcdef0000"),
    ("allocate_host", (3 << 32,), 0x7FFFFEEE0000, f"cuMemHostAlloc {3 << 32} 0"),
    ("free_host", (0x7FFFFEEE0000,), None, "cuMemFreeHost 7ffffeee0000"),
    ("copy_to_device", (0x7FA0000000, 0x7FB0000000, 5 << 32, 0x7FC0000000), None,
     f"cuMemcpyHtoDAsync_v2 7fa0000000 7fb0000000 {5 << 32} 7fc0000000"),
    ("copy_to_host", (0x7FA0000000, 0x7FB0000000, 5 << 32, 0x7FC0000000), None,
     f"cuMemcpyDtoHAsync_v2 7fa0000000 7fb0000000 {5 << 32} 7fc0000000"),
    ("copy_on_device", (0x7FA0000000, 0x7FB0000000, 5 << 32, 0x7FC0000000), None,
     f"cuMemcpyDtoDAsync_v2 7fa0000000 7fb0000000 {5 << 32} 7fc0000000"),
    ("fill", (0x7FA0000000, 255, 5 << 32, 0x7FC0000000), None,
     f"cuMemsetD8Async 7fa0000000 255 {5 << 32} 7fc0000000"),
    ("load_module", (".version 7.4",), 0x700000000011, "cuModuleLoadDataEx .version 7.4 2 5 6 8192"),
    ("unload_module", (0x700000000011,), None, "cuModuleUnload 700000000011"),
    ("find_kernel", (0x700000000011, "gemv"), 0x700000000022, "cuModuleGetFunction 700000000011 gemv"),
    ("allow_shared_bytes", (0x700000000022, 99 << 10), None, "cuFuncSetAttribute 700000000022 8 101376"),
    ("launch", (0x700000000022, 7, 256, 1024, 0x700000000033, "lif", (0x7FA0000000, -5, 0.1), False), None,
     "cuLaunchKernel 700000000022 7 1 1 256 1 1 1024 700000000033 0 | 7fa0000000 -5 0x1.99999ap-4"),
    ("launch", (0x700000000022, 7, 256, 1024, 0x700000000033, "lif", (0x7FA0000000, -5, 0.1), True), None,
     "cuLaunchKernelEx 700000000022 7 1 1 256 1 1 1024 700000000033 0 1 6 1 | 7fa0000000 -5 0x1.99999ap-4"),
    ("create_stream", (), 0x700000000033, "cuStreamCreate 1"),
    ("destroy_stream", (0x700000000033,), None, "cuStreamDestroy_v2 700000000033"),
    ("synchronise_stream", (0x700000000033,), None, "cuStreamSynchronize 700000000033"),
    ("stream_is_idle", (0x700000000033,), True, "cuStreamQuery 700000000033"),
    ("wait_event", (0x700000000033, 0x700000000044), None, "cuStreamWaitEvent 700000000033 700000000044 0"),
    ("create_event", (), 0x700000000044, "cuEventCreate 2"),
    ("create_event", (True,), 0x700000000044, "cuEventCreate 0"),
    ("destroy_event", (0x700000000044,), None, "cuEventDestroy_v2 700000000044"),
    ("record_event", (0x700000000044, 0x700000000033), None, "cuEventRecord 700000000044 700000000033"),
    ("synchronise_event", (0x700000000044,), None, "cuEventSynchronize 700000000044"),
    ("milliseconds", (0x700000000044, 0x700000000045), 1.5, "cuEventElapsedTime 700000000044 700000000045"),
    ("begin_capture", (0x700000000033,), None, "cuStreamBeginCapture_v2 700000000033 1"),
    ("end_capture", (0x700000000033,), 0x700000000055, "cuStreamEndCapture 700000000033"),
    ("destroy_graph", (0x700000000055,), None, "cuGraphDestroy 700000000055"),
    ("instantiate", (0x700000000055,), 0x700000000066, "cuGraphInstantiateWithFlags 700000000055 0"),
    ("destroy_executable", (0x700000000066,), None, "cuGraphExecDestroy 700000000066"),
    ("launch_graph", (0x700000000066, 0x700000000033), None, "cuGraphLaunch 700000000066 700000000033"),
]  # fmt: skip


class Stub:
    """The compiled stub, and the driver that uses it."""

    def __init__(self, path: Path) -> None:
        self.driver, library = LibCuda(str(path)), ctypes.CDLL(str(path))
        library.stub_record.restype, library.stub_sizes.restype = ctypes.c_char_p, ctypes.c_size_t
        self.fail, self.sizes = library.stub_fail, library.stub_sizes
        self.record = lambda: library.stub_record().decode()


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Stub:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    path = tmp_path_factory.mktemp("stub") / "libcuda.so.1"
    subprocess.run([compiler, "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(path), str(SOURCE)], check=True)
    return Stub(path)


@pytest.mark.parametrize(("method", "arguments", "result", "recorded"), CALLS, ids=[call[0] for call in CALLS])
def test_arguments_arrive_in_order_and_whole(
    stub: Stub, method: str, arguments: tuple[Any, ...], result: Any, recorded: str
) -> None:
    assert getattr(stub.driver, method)(*arguments) == result
    assert stub.record() == recorded


def test_every_method_and_every_function_is_tested() -> None:
    methods = {name for name, _ in inspect.getmembers(Driver, inspect.isfunction) if not name.startswith("_")}
    assert {call[0] for call in CALLS} == methods
    called = {call[3].split()[0] for call in CALLS} | {"cuDeviceGet"}
    assert called == set(SIGNATURES)


def test_structures_have_the_layout_of_the_compiler(stub: Stub) -> None:
    ours = [
        *(ctypes.sizeof(LaunchAttribute), ctypes.sizeof(LaunchConfig), LaunchConfig.stream.offset),
        *(LaunchConfig.attributes.offset, LaunchConfig.attribute_count.offset, LaunchAttribute.value.offset),
    ]
    assert ours == [stub.sizes(which) for which in range(6)] == [72, 56, 32, 40, 48, 8]


@pytest.mark.parametrize(("method", "arguments", "result", "recorded"), CALLS, ids=[call[0] for call in CALLS])
def test_every_code_is_raised(stub: Stub, method: str, arguments: tuple[Any, ...], result: Any, recorded: str) -> None:
    stub.fail(719)
    try:
        with pytest.raises(GpuLostError, match=r"launch failed \(CUDA error 719 in cu"):
            getattr(stub.driver, method)(*arguments)
    finally:
        stub.fail(0)


def test_a_busy_stream_is_not_an_error(stub: Stub) -> None:
    stub.fail(600)
    try:
        assert stub.driver.stream_is_idle(0x700000000033) is False
    finally:
        stub.fail(0)


def test_refused_ptx_shows_the_first_line_of_the_log(stub: Stub) -> None:
    stub.fail(218)
    try:
        with pytest.raises(GpuError, match=r"\(CUDA error 218 in cuModuleLoadDataEx, ptxas fatal   : no entry\)"):
            stub.driver.load_module("x")
    finally:
        stub.fail(0)


def test_a_library_without_the_functions_is_an_old_driver(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source = tmp_path / "old.c"
    source.write_text("int cuInit(unsigned int flags) { return 0; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(tmp_path / "old.so"), str(source)], check=True)
    driver = LibCuda(str(tmp_path / "old.so"))
    driver.initialise()
    with pytest.raises(GpuError, match=r"^the NVIDIA driver is too old \(cuDriverGetVersion is missing\): update"):
        driver.driver_version()
