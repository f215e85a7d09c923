"""Atomic operations, clocks and pauses: what the thread team is built from.

Addresses are 64-bit integers. All atomics are sequentially consistent. They are written as LLVM instructions, since
Numba has none for the CPU (numba issue 2988).
"""

from __future__ import annotations

import resource
import time
from typing import Any

from quant.native import simd_level
from quant.native.backend import ir, types
from qwchat.cpu.kernels.jit import inlined
from qwchat.cpu.kernels.simd import I32, I64, emit_call, emit_load, emit_store, operation

_FULL_SYSTEM = 15  # operand of `isb`: the full system


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, I64.as_pointer())


def _pause(builder: Any) -> None:
    """Emit the processor's hint for a spinning loop; nothing on other architectures than these two."""
    if simd_level.architecture() == "x86":
        emit_call(builder, "llvm.x86.sse2.pause", ir.VoidType())
    elif simd_level.architecture() == "aarch64":
        # Most processors ignore the hint `yield`; a barrier really waits for some cycles.
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
# Plain accesses, for fields that only one thread uses.
load_private = operation(types.int64, (types.int64,), lambda b, a: emit_load(b, a, I64, 8))
store_private = operation(types.void, (types.int64, types.int64), lambda b, a, x: emit_store(b, a, x, 8))
exchange_if = operation(types.boolean, (types.int64, types.int64, types.int64), _exchange_if)
pause = operation(types.void, (), _pause)
yield_processor = types.ExternalFunction("sched_yield", types.int32())
sleep_microseconds = types.ExternalFunction("usleep", types.int32(types.uint32))
_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))
_getrusage = types.ExternalFunction("getrusage", types.int32(types.int32, types.int64))

CLOCK_BYTES = 160  # scratch of the functions below: a struct timespec or rusage
_WALL, _THREAD = time.CLOCK_MONOTONIC, time.CLOCK_THREAD_CPUTIME_ID
_RUSAGE_THREAD = getattr(resource, "RUSAGE_THREAD", None)  # Linux only
_RU_NIVCSW = 136  # offset of the field ru_nivcsw, involuntary context switches


@inlined
def wall_time(scratch):
    """Return the nanoseconds of the monotonic clock.

    Args:
        scratch: address of CLOCK_BYTES bytes that only this thread uses.
    """
    _clock_gettime(_WALL, scratch)
    return load_private(scratch) * 1_000_000_000 + load_private(scratch + 8)


@inlined
def thread_time(scratch):
    """Return the nanoseconds of processor time that the calling thread has used; `scratch` as for `wall_time`."""
    _clock_gettime(_THREAD, scratch)
    return load_private(scratch) * 1_000_000_000 + load_private(scratch + 8)


@inlined
def preemptions(scratch):
    """Return how often the system has preempted the calling thread; 0 on systems other than Linux.

    Args:
        scratch: as for `wall_time`.
    """
    if _RUSAGE_THREAD is None or _getrusage(_RUSAGE_THREAD, scratch) != 0:
        return 0
    return load_private(scratch + _RU_NIVCSW)
