"""What this machine can do at most: read bandwidth and int8 arithmetic.  Speeds are reported as shares of these."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from qwchat.kernels import simd
from qwchat.kernels.jit import kernel

READ_BYTES = 512 << 20  # far beyond any cache that a laptop or a slice of a server has
_READ_ROUNDS = 8
_AHEAD = 8192  # bytes to ask for ahead of reading them
_CHAINS = 12  # independent accumulators: enough to hide the latency of a dot product
_ROUNDS = 10_000_000  # some tens of milliseconds: the start of a thread must not show


@kernel
def _read(start, size, rounds):
    # Four sums and a prefetch: one chain of additions would be slower than the memory.
    a = b = c = d = simd.splat(np.float32(0))
    for _ in range(rounds):
        for offset in range(start, start + size, 256):
            for line in range(0, 256, 64):
                simd.prefetch(offset + _AHEAD + line)
            a = simd.add(a, simd.load_f32(offset))
            b = simd.add(b, simd.load_f32(offset + 64))
            c = simd.add(c, simd.load_f32(offset + 128))
            d = simd.add(d, simd.load_f32(offset + 192))
    return simd.sum_lanes(simd.add(simd.add(a, b), simd.add(c, d)))


@intrinsic
def _dots(typing, rounds, seed):
    """``rounds`` times one dot product of a register on each of the chains; the sum of all, so that none is dropped."""

    def generate(context, builder, signature, values):
        rounds, seed = values
        start = simd.emit_splat(builder, builder.trunc(seed, simd.I32), simd.lanes())
        line = ir.VectorType(simd.I8, 4 * simd.lanes())
        operand = builder.bitcast(start, line)
        slots = [cgutils.alloca_once(builder, start.type) for _ in range(_CHAINS)]
        for slot in slots:
            builder.store(start, slot)
        with cgutils.for_range(builder, rounds):
            for slot in slots:
                # The chain's own value is an operand, so that the compiler cannot merge the chains.
                mixed = builder.bitcast(builder.load(slot), line)
                builder.store(simd.emit_offset_dot(builder, builder.load(slot), operand, mixed), slot)
        total = builder.load(slots[0])
        for slot in slots[1:]:
            total = builder.add(total, builder.load(slot))
        return builder.zext(builder.extract_element(total, simd.I32(0)), simd.I64)

    return types.int64(types.int64, types.int64), generate


@kernel
def _multiply(rounds, seed):
    return _dots(rounds, seed)


def _together(threads: int, work: Callable[[int], object]) -> float:
    """Seconds until ``work(member)`` is done by all of ``threads`` threads; the best of three."""
    best = float("inf")
    for _ in range(3):
        members = [threading.Thread(target=work, args=(member,)) for member in range(threads)]
        start = time.perf_counter()
        for member in members:
            member.start()
        for member in members:
            member.join()
        best = min(best, time.perf_counter() - start)
    return best


def read_bandwidth(threads: int) -> float:
    """Bytes per second that ``threads`` threads read from memory together."""
    data = np.ones(READ_BYTES, np.uint8)
    share = READ_BYTES // threads // 4096 * 4096
    start = data.ctypes.data
    _read(start, 4096, 1)
    seconds = _together(threads, lambda member: _read(start + member * share, share, _READ_ROUNDS))
    return _READ_ROUNDS * share * threads / seconds


def int8_peak(threads: int) -> float:
    """Operations per second (a multiplication and an addition are two) of int8 dot products in registers."""
    _multiply(1, 3)
    seconds = _together(threads, lambda member: _multiply(_ROUNDS, 3 + 2 * member))
    return threads * _ROUNDS * _CHAINS * 4 * simd.lanes() * 2 / seconds
