"""Codes of the NVIDIA driver as exceptions of this project, each with one line and a remedy."""

from __future__ import annotations

from quant.units import binary_size
from quant.wording import Argument, ArgumentMessage, SuggestedArgument
from qwchat.errors import GpuError, GpuLostError, GpuMemoryError, QwchatError, UsageError

SUCCESS = 0
OUT_OF_MEMORY = 2
INVALID_DEVICE = 101
NOT_READY = 600

_UPDATE = "update the NVIDIA driver"
_REINSTALL = "reinstall the NVIDIA driver"
_RESTART = "restart the machine"
_REPORT = "report this as a bug"
_REFUSED = ("the NVIDIA driver cannot compile this program's GPU code", _UPDATE)

# Code -> what it means, and what the user can do besides using the CPU. Plain tuples are made at no cost.
_EXPLANATIONS = {
    34: ("the libcuda that was found is a stub of the CUDA toolkit", "install the NVIDIA driver"),
    35: ("the NVIDIA driver is too old", _UPDATE),
    46: ("the GPU is used exclusively by another process", "end that process"),
    100: ("the NVIDIA driver found no GPU", "check CUDA_VISIBLE_DEVICES"),
    200: _REFUSED,
    209: _REFUSED,
    218: _REFUSED,
    221: ("the NVIDIA driver has no compiler (libnvidia-ptxjitcompiler)", _REINSTALL),
    222: _REFUSED,
    223: ("compiling GPU code is disabled", "unset CUDA_DISABLE_PTX_JIT"),
    304: ("the system refused a call of the NVIDIA driver", _RESTART),
    701: ("the GPU has too few registers or too little shared memory for a kernel", _REPORT),
    720: ("the GPU cannot hold all blocks of a kernel at once", _REPORT),
    802: ("the GPU is not ready", "start nvidia-fabricmanager"),
    803: ("libcuda and the kernel module of the NVIDIA driver differ in version", _RESTART),
    804: ("the CUDA compatibility package does not support this GPU", _UPDATE),
    999: ("the NVIDIA driver failed for an unknown reason", _RESTART),
}

LOST = {
    214: "uncorrectable memory error",
    220: "uncorrectable NVLink error",
    226: "contained error",
    700: "illegal address",
    702: "time limit exceeded",
    709: "context destroyed",
    710: "assertion failed",
    714: "stack error",
    715: "illegal instruction",
    716: "misaligned address",
    717: "invalid address space",
    718: "invalid program counter",
    719: "launch failed",
}
"""Codes after which each later call of this process fails in the same way."""


def _with_cpu(problem: str, remedy: str) -> ArgumentMessage:
    return ArgumentMessage(f"{problem}: {remedy}, or ", *_use_cpu())


def _use_cpu() -> tuple[str | Argument, ...]:
    return "use ", SuggestedArgument("device", "cpu")


def error_of(code: int, call: str, detail: str = "") -> QwchatError:
    """Return the exception for a code of the driver.

    Args:
        code: not 0.
        call: name of the function that returned it.
        detail: one line that the driver added.
    """
    where = f" (CUDA error {code} in {call}{f', {detail}' if detail else ''})"
    if code == OUT_OF_MEMORY:
        return _memory_error(f"the GPU has too little free memory{where}")
    if code == INVALID_DEVICE:
        return UsageError(ArgumentMessage(Argument("device"), f" names a GPU that does not exist{where}"))
    if code in LOST:
        return GpuLostError(
            ArgumentMessage(f"the GPU stopped: {LOST[code]}{where}: restart the program, or ", *_use_cpu())
        )
    known = _EXPLANATIONS.get(code)
    if known is not None:
        problem, remedy = known
        return GpuError(_with_cpu(f"{problem}{where}", remedy))
    return GpuError(_with_cpu(f"the NVIDIA driver failed{where}", _REPORT))


def no_driver(library: str) -> GpuError:
    """Return the exception for a machine without a driver; `library` was not found."""
    return GpuError(_with_cpu(f"there is no NVIDIA driver ({library} was not found)", "install it"))


def missing_function(name: str) -> GpuError:
    """Return the exception for a driver that lacks the function `name`."""
    return GpuError(_with_cpu(f"the NVIDIA driver is too old ({name} is missing)", _UPDATE))


def driver_too_old(version: int, needed: int) -> GpuError:
    """Return the exception for a driver that supports CUDA `version`, below `needed` (1000 * major + 10 * minor)."""
    supported, wanted = (f"{number // 1000}.{number % 1000 // 10}" for number in (version, needed))
    problem = f"the NVIDIA driver supports CUDA {supported}, but {wanted} is needed"
    return GpuError(_with_cpu(problem, _UPDATE))


def too_little_memory(needed: int, free: int, purpose: str) -> GpuMemoryError:
    """Return the exception for `purpose`, which needs `needed` bytes of which `free` are free."""
    return _memory_error(f"{purpose} needs {binary_size(needed)} of GPU memory, but only {binary_size(free)} are free")


def _memory_error(problem: str) -> GpuMemoryError:
    smaller = ArgumentMessage("choose a smaller ", Argument("gpu_layers"), " or ", Argument("context"))
    return GpuMemoryError(ArgumentMessage(f"{problem}: ", smaller, ", or ", *_use_cpu()))
