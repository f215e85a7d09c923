"""Functions of the engine that the commands call, in one place so that tests can replace them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwchat.limits import DEFAULT_ACTIVATIONS

if TYPE_CHECKING:
    from qwchat.api import Model
    from qwchat.store.cards import Card


def load_model(
    path: Path,
    *,
    threads: int | None = None,
    context: int | None = None,
    device: str = "auto",
    gpu_layers: int | None = None,
    kv: str = "auto",
    activations: int = DEFAULT_ACTIVATIONS,
    progress: Callable[[int, int], None] | None = None,
) -> Model:
    """Open a model folder with the real engine; see `qwchat.load`."""
    import qwchat

    return qwchat.load(
        path,
        threads=threads,
        context=context,
        device=device,
        gpu_layers=gpu_layers,
        kv=kv,
        activations=activations,
        progress=progress,
    )


def are_kernels_compiled() -> bool:
    """Return True if the kernels are compiled."""
    from qwchat.cpu.compiled_forward import is_compiled

    return is_compiled()


def kernel_compile_cost() -> float:
    """Return the cost of compiling all kernels, in the unit of their table."""
    from qwchat.cpu.kernels.compile_costs import COSTS

    return sum(COSTS.values())


def compile_kernels(progress: Callable[[str, float], None], waiting: Callable[[], object]) -> None:
    """Compile the kernels and cache them.

    Args:
        progress: called before each kernel with its name and cost (see `qwchat.cpu.kernels.compile_costs`).
        waiting: called before waiting for another process that compiles them.
    """
    from qwchat.cpu.compiled_forward import load_entry_points

    load_entry_points(progress, waiting)


def kernel_cache_problem() -> str | None:
    """Return a sentence about a problem with the cache of compiled kernels, or None."""
    from qwchat.cpu.kernels.kernel_store import KERNELS

    if KERNELS.writable_folder != KERNELS.folder:
        return (
            f"cannot cache compiled kernels in {KERNELS.folder.parent}, which must be writable by you alone: "
            "set QWCHAT_CACHE to such a folder, or every start compiles them"
        )
    return "the cached kernels are damaged and will be compiled again" if KERNELS.is_damaged() else None


def measure_bandwidth(threads: int) -> float:
    """Return the bytes per second that `threads` threads read from memory."""
    from qwchat.cpu.kernels.probe import read_bandwidth

    return float(read_bandwidth(threads))


def measure_quick_bandwidth(threads: int) -> float | None:
    """Return the bytes per second that `threads` threads read from memory, measured in 0.1 s; None if unknown."""
    from qwchat.cpu.bandwidth import quick_read_bandwidth

    return quick_read_bandwidth(threads)


def find_own_card() -> Card | None:
    """Return the GPU of this machine that a model would run on; None without a GPU that can be used."""
    from qwchat.cuda.device import find_gpus, select_gpu
    from qwchat.cuda.libcuda import LibCuda
    from qwchat.errors import GpuError
    from qwchat.store.cards import Card

    try:
        gpu = select_gpu(find_gpus(LibCuda()), None)
        assert gpu.target, "a GPU without one is too old"
    except GpuError:
        return None
    return Card(gpu.name, gpu.total_memory, gpu.bandwidth or None)


def measure_int8_peak(threads: int) -> float:
    """Return the int8 operations per second of `threads` threads; a multiply-add counts as two."""
    from qwchat.cpu.kernels.probe import int8_peak

    return float(int8_peak(threads))


def simd_level() -> str:
    """Return the SIMD level that the kernels are compiled for."""
    from quant.native.simd_level import current_level

    return current_level()


@dataclass(frozen=True)
class Dependencies:
    """The engine and the probes of the machine."""

    load: Callable[..., Model] = load_model
    compiled: Callable[[], bool] = are_kernels_compiled
    cache_problem: Callable[[], str | None] = kernel_cache_problem
    kernel_compile_cost: Callable[[], float] = kernel_compile_cost
    compile: Callable[[Callable[[str, float], None], Callable[[], object]], None] = compile_kernels
    bandwidth: Callable[[int], float] = measure_bandwidth
    quick_bandwidth: Callable[[int], float | None] = measure_quick_bandwidth
    card: Callable[[], Card | None] = find_own_card
    int8_peak: Callable[[int], float] = measure_int8_peak
    simd: Callable[[], str] = simd_level
