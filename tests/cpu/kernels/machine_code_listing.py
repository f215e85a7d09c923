"""Compile every kernel that is called by symbol, for one SIMD level, and print the machine code as JSON.

`python -m tests.cpu.kernels.machine_code_listing LEVEL` compiles for a level of this machine. The levels `neon` and
`portable-aarch64` are cross-compiled by Numba, whose LLVM contains the AArch64 back end. Nothing is run. `LEVEL
forward` adds the forward pass, which takes longest. `QWCHAT_CACHE` must name an empty folder, since code from a cache
cannot be read.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from typing import Any

TRIPLE = "aarch64-unknown-linux-gnu"
PROCESSOR = ("neoverse-n1", "+neon,+dotprod")
CROSS = {"neon": "neon", "portable-aarch64": "portable"}


def choose(name: str) -> None:
    """Make `name` the level in force, before anything that depends on it is imported."""
    from quant.native import simd_level

    simd_level.current_level = lambda: name


def cross_compile() -> None:
    """Let Numba compile for AArch64: with another triple and processor, and without addresses of functions."""
    import llvmlite.binding as llvm
    from numba.core import codegen, config

    from quant.native import simd_level

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    simd_level.architecture = lambda: "aarch64"
    config.CPU_NAME, config.CPU_FEATURES = PROCESSOR
    codegen.ll.get_process_triple = lambda: TRIPLE
    codegen.JITCodeLibrary.get_pointer_to_function = lambda library, name: 1


def listing(forward: bool) -> dict[str, Any]:
    """Return the `code` of each symbol, and the lanes of products that its generators asked for.

    `dots` counts lanes of products of bytes, `dots16` lanes of products of 16-bit integers.
    """
    from qwchat.cpu.kernels import dot_products, jit

    asked = {"dots": 0, "dots16": 0}
    inside = False
    result: dict[str, Any] = {}

    def counted(what: str, emit: Any) -> Any:
        def count(builder: Any, total: Any, *operands: Any) -> Any:
            nonlocal inside
            if inside:  # a dot product that is made of another
                return emit(builder, total, *operands)
            asked[what], inside = asked[what] + total.type.count, True
            try:
                return emit(builder, total, *operands)
            finally:
                inside = False

        return count

    def standalone(signature: Any) -> Any:
        def decorate(function: Any) -> Any:
            asked.update(dots=0, dots16=0)
            compiled = plain(signature)(function)
            symbol = f"qwchat_{function.__name__}"
            result[symbol] = {"code": jit.machine_code(symbol), **asked}
            return compiled

        return decorate

    plain, jit.standalone = jit.standalone, standalone
    dot_products.emit_dot = counted("dots", dot_products.emit_dot)
    dot_products.emit_offset_dot = counted("dots", dot_products.emit_offset_dot)
    dot_products.emit_dot16 = counted("dots16", dot_products.emit_dot16)
    package = importlib.import_module("qwchat.cpu.kernels")
    for module in pkgutil.iter_modules(package.__path__, "qwchat.cpu.kernels."):
        importlib.import_module(module.name)
    if forward:
        importlib.import_module("qwchat.cpu.forward")
    return result


def spinning() -> str:
    """Return the machine code of a loop that waits."""
    from numba import types

    from qwchat.cpu.kernels import jit, sync

    def wait(address: int) -> None:
        while sync.atomic_load(address) == 0:
            sync.pause()

    jit.standalone(types.void(types.int64))(wait)
    return jit.machine_code("qwchat_wait")


if __name__ == "__main__":
    wanted = sys.argv[1]
    choose(CROSS.get(wanted, wanted))
    if wanted in CROSS:
        cross_compile()
    json.dump({"spinning": spinning(), "kernels": listing("forward" in sys.argv[2:])}, sys.stdout)
