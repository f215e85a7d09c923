"""Atomics on integer addresses: what the thread team is built of.  Numba has none for the CPU (numba issue 2988)."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from qwchat.kernels import level
from qwchat.kernels.simd import I32, I64, emit_call, operation

_FULL_SYSTEM = 15  # the operand of isb


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, I64.as_pointer())


def _pause(builder: Any) -> None:
    """Eases a spinning loop; elsewhere than on these two, spinning without a hint is only less polite."""
    if level.architecture() == "x86":
        emit_call(builder, "llvm.x86.sse2.pause", ir.VoidType())
    elif level.architecture() == "aarch64":
        # Most processors treat the hint `yield` as nothing; a barrier really waits some cycles.
        emit_call(builder, "llvm.aarch64.isb", ir.VoidType(), I32(_FULL_SYSTEM))


def _exchange_if(builder: Any, address: Any, expected: Any, value: Any) -> Any:
    pair = builder.cmpxchg(_pointer(builder, address), expected, value, "seq_cst", "seq_cst")
    return builder.extract_value(pair, 1)


atomic_add = operation(
    types.int64, (types.int64, types.int64), lambda b, a, x: b.atomic_rmw("add", _pointer(b, a), x, "seq_cst")
)
atomic_load = operation(types.int64, (types.int64,), lambda b, a: b.load_atomic(_pointer(b, a), "seq_cst", 8))
atomic_store = operation(
    types.void, (types.int64, types.int64), lambda b, a, x: b.store_atomic(x, _pointer(b, a), "seq_cst", 8)
)
exchange_if = operation(types.boolean, (types.int64, types.int64, types.int64), _exchange_if)
pause = operation(types.void, (), _pause)
yield_processor = types.ExternalFunction("sched_yield", types.int32())
