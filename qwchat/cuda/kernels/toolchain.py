"""Compile kernels to PTX with numba-cuda. Only this module imports Numba's CUDA target and llvmlite.

The PTX is deterministic: it depends on the sources and on the versions of the compiler, not on names that Numba makes
up. Floating-point operations are rounded as written: no multiplication and addition are fused unless the source says
`fma`, so that two kernels that add in the same order return the same bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from quant.native.clean_import import clean_import
from qwchat.cuda.kernels.unit import Kernel, Unit

with clean_import():
    from llvmlite import ir
    from numba import cuda
    from numba.core import cgutils
    from numba.cuda import dispatcher, types
    from numba.cuda.cudadrv import nvvm
    from numba.cuda.extending import intrinsic

__all__ = ["A", "F", "I", "U", "cgutils", "compile_unit", "cuda", "device", "intrinsic", "ir", "types"]

A, F, I, U = types.uint64, types.float32, types.int32, types.uint32  # noqa: E741  as in the signatures

ISA = {75: "7.4", 80: "7.4", 90: "7.8"}
"""PTX version per target: the lowest that the instructions need, so that old drivers take it."""

_PARAMETERS = {"l": A, "i": I, "f": F}
_SHARED_ALIGNMENT = 16  # 128-bit accesses.


def device(function: Callable[..., Any]) -> Any:
    """Make `function` callable from kernels; it is always inlined."""
    return cuda.jit(device=True, forceinline=True)(function)


def compile_unit(unit: Unit, target: int) -> str:
    """Return the PTX of all kernels of `unit` for compute capability `target` (75 = 7.5)."""
    header = f".version {ISA[target]}\n.target sm_{target}\n.address_size 64\n"
    return header + "".join("\n" + _compile(kernel, target) for kernel in unit.kernels)


def _compile(kernel: Kernel, target: int) -> str:
    """Return declarations and entry of a kernel, without the header."""
    signature = types.void(*[_PARAMETERS[letter] for letter in kernel.signature])
    capability = divmod(target, 10)
    with _answers_of_a_device(capability), _separate_roundings():
        text, _ = cuda.compile(
            kernel.function,
            signature,
            device=False,
            abi="numba",
            cc=capability,
            output="ptx",
            launch_bounds=(kernel.threads, kernel.blocks_per_sm),
        )
    return _clean(text, kernel.name)


@contextmanager
def _answers_of_a_device(capability: tuple[int, int]) -> Iterator[None]:
    """Answer Numba's question for the current device, which it asks even if the capability is given."""
    asked = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    try:
        yield
    finally:
        dispatcher.get_current_device = asked


@contextmanager
def _separate_roundings() -> Iterator[None]:
    """Make NVVM round each operation (`mul.rn`, `add.rn`), which also keeps the driver from fusing them."""
    compile_ir = nvvm.compile_ir
    nvvm.compile_ir = lambda text, **options: compile_ir(text, **options, fma=0)
    try:
        yield
    finally:
        nvvm.compile_ir = compile_ir


def _clean(text: str, name: str) -> str:
    """Return PTX with plain names, and without header, comments and Numba's globals.

    Raises:
        ValueError: A device function was not inlined.
    """
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"^\s*\.(?:version|target|address_size)\b.*$", "", text, flags=re.M)
    text = re.sub(r"^\s*\.common \.global [^\n]*NumbaEnv[^\n]*;$", "", text, flags=re.M)
    if re.search(r"\.func\b", text):
        raise ValueError(f"kernel {name}: a device function is not inlined; use toolchain.device")
    (symbol,) = re.findall(r"\.entry\s+([\w$]+)", text)
    text = text.replace(symbol, name)
    text, arrays = _in_order_of_use(text)
    for index, array in enumerate(arrays):
        text = re.sub(rf"{re.escape(array)}(?![\w$])", f"{name}_shared_{index}", text)
    text = re.sub(r"(?:\.visible )?\.shared \.align (\d+)", _aligned, text)
    constants = re.findall(r"\.(?:const|global) \.align \d+ \.b8 ([\w$]+)\[", text)
    for index, constant in enumerate(constants):
        text = re.sub(rf"{re.escape(constant)}(?![\w$])", f"{name}_constant_{index}", text)
    lines = (line.rstrip() for line in text.splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def _in_order_of_use(text: str) -> tuple[str, list[str]]:
    """Return PTX of a kernel with its shared arrays declared in the order of their first use, and their names.

    Numba's own order follows names that depend on what was compiled before.
    """
    declared = {found[1]: found[0] for found in re.finditer(r"^.*\.shared \.align \d+ \.b8 ([\w$]+)\[.*$", text, re.M)}
    body = text[text.index(".entry") :]
    uses = {array: re.search(rf"{re.escape(array)}(?![\w$])", body) for array in declared}
    arrays = sorted(declared, key=lambda array: found.start() if (found := uses[array]) else len(body))
    lines = iter([declared[array] for array in arrays])
    return re.sub(r"^.*\.shared \.align \d+ \.b8 .*$", lambda _: next(lines), text, flags=re.M), arrays


def _aligned(found: re.Match[str]) -> str:
    return f".shared .align {max(int(found[1]), _SHARED_ALIGNMENT)}"
