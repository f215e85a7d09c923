"""Compile the kernels: `quant.native.compiler` with the kernels' own store and costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quant.native.compiler import PROCESSORS, CompilationUnit, inlined, subroutine, warm_up
from quant.native.object_store import CompileProgress
from qwchat.cpu.kernels import kernel_store
from qwchat.cpu.kernels.compile_costs import COSTS

__all__ = ["PROCESSORS", "compile_all", "entry", "inlined", "kernel", "machine_code", "standalone", "warm_up"]

_unit = CompilationUnit(kernel_store.KERNELS, "qwchat_")
kernel = subroutine


def standalone(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function that other code calls by symbol, apart from its callers (see `Unit.standalone`)."""
    return _unit.standalone(signature)


def entry(kernel_function: Any, signature: Any) -> None:
    """Make a kernel a standalone function as well, which Python calls by symbol."""
    standalone(signature)(kernel_function.py_func)


def compile_all(load_modules: Callable[[], object], progress: CompileProgress | None) -> dict[str, int]:
    """Compile the kernels, store the code and return the address of each symbol (see `Unit.compile_all`)."""
    return _unit.compile_all(load_modules, COSTS, progress)


def machine_code(symbol: str) -> str:
    """Return the assembly of a standalone function."""
    return _unit.machine_code(symbol)
