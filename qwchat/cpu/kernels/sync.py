"""Atomics on integer addresses: what the thread team is built of.  Numba has none for the CPU (numba issue 2988)."""

from __future__ import annotations

import resource
import time
from typing import Any

from quant.native import simd_level
from quant.native.backend import ir, types
from qwchat.cpu.kernels.jit import inlined
from qwchat.cpu.kernels.simd import I32, I64, emit_call, emit_load, emit_store, operation

_FULL_SYSTEM = 15  # the operand of isb


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, I64.as_pointer())


def _pause(builder: Any) -> None:
    """Eases a spinning loop; elsewhere than on these two, spinning without a hint is only less polite."""
    if simd_level.architecture() == "x86":
        emit_call(builder, "llvm.x86.sse2.pause", ir.VoidType())
    elif simd_level.architecture() == "aarch64":
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
# For fields that one thread alone uses.
load_private = operation(types.int64, (types.int64,), lambda b, a: emit_load(b, a, I64, 8))
store_private = operation(types.void, (types.int64, types.int64), lambda b, a, x: emit_store(b, a, x, 8))
exchange_if = operation(types.boolean, (types.int64, types.int64, types.int64), _exchange_if)
pause = operation(types.void, (), _pause)
yield_processor = types.ExternalFunction("sched_yield", types.int32())
sleep_microseconds = types.ExternalFunction("usleep", types.int32(types.uint32))
_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))
_getrusage = types.ExternalFunction("getrusage", types.int32(types.int32, types.int64))

CLOCK_BYTES = 160  # scratch that the functions below need: a struct rusage
_WALL, _THREAD = time.CLOCK_MONOTONIC, time.CLOCK_THREAD_CPUTIME_ID
_RUSAGE_THREAD = getattr(resource, "RUSAGE_THREAD", None)  # Linux only
_RU_NIVCSW = 136  # offset of the last field


@inlined
def wall_time(scratch):
    """Nanoseconds of the monotonic clock.  `scratch`: address of CLOCK_BYTES bytes of this thread."""
    _clock_gettime(_WALL, scratch)
    return load_private(scratch) * 1_000_000_000 + load_private(scratch + 8)


@inlined
def thread_time(scratch):
    """Nanoseconds for which the calling thread has had a processor."""
    _clock_gettime(_THREAD, scratch)
    return load_private(scratch) * 1_000_000_000 + load_private(scratch + 8)


@inlined
def preemptions(scratch):
    """How often the processor was taken from the calling thread; 0 where the system does not tell."""
    if _RUSAGE_THREAD is None or _getrusage(_RUSAGE_THREAD, scratch) != 0:
        return 0
    return load_private(scratch + _RU_NIVCSW)
