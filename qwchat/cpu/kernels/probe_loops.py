"""Compiled loops of `qwchat.cpu.kernels.probe`."""

from __future__ import annotations

import numpy as np

from quant.native import simd_level
from quant.native.backend import cgutils, intrinsic, ir, types
from quant.native.compiler import CompilationUnit
from qwchat.cpu.kernels import dot_products, simd
from qwchat.cpu.kernels.kernel_store import PROBE_CHAINS, PROBES, PROBES_PREFIX

UNIT = CompilationUnit(PROBES, PROBES_PREFIX)
_AHEAD = 8192  # bytes between a prefetch and the load


@UNIT.standalone(types.int64(*[types.int64] * 3))
def read_memory(start, size, rounds):
    # Four sums: a single chain of additions would be slower than the memory.
    """Read `size` bytes from `start` on, `rounds` times; return a sum of them, so that no load can be dropped."""
    a = b = c = d = simd.splat(np.float32(0))
    for _ in range(rounds):
        for offset in range(start, start + size, 256):
            for line in range(0, 256, 64):
                simd.prefetch(offset + _AHEAD + line)
            a = simd.add(a, simd.load_f32(offset))
            b = simd.add(b, simd.load_f32(offset + 64))
            c = simd.add(c, simd.load_f32(offset + 128))
            d = simd.add(d, simd.load_f32(offset + 192))
    return np.int64(simd.sum_lanes(simd.add(simd.add(a, b), simd.add(c, d))))


def emit_dots(builder, rounds, seed):
    """Emit `rounds` rounds of one dot product on each chain, and the sum of all chains.

    The sum is returned so that LLVM cannot drop a chain.
    """
    start = simd.emit_splat(builder, builder.trunc(seed, simd.I32), simd_level.lanes())
    line = ir.VectorType(simd.I8, 4 * simd_level.lanes())
    operand = builder.bitcast(start, line)
    chains = [cgutils.alloca_once(builder, start.type) for _ in range(PROBE_CHAINS)]
    for chain in chains:
        builder.store(start, chain)
    with cgutils.for_range(builder, rounds):
        for chain in chains:
            # The chain's own value is an operand, so that LLVM cannot merge the chains.
            mixed = builder.bitcast(builder.load(chain), line)
            builder.store(dot_products.emit_peak_dot(builder, builder.load(chain), operand, mixed), chain)
    total = builder.load(chains[0])
    for chain in chains[1:]:
        total = builder.add(total, builder.load(chain))
    return builder.zext(builder.extract_element(total, simd.I32(0)), simd.I64)


@intrinsic
def _dots(typing, rounds, seed):
    """Return the result of `emit_dots`."""

    def generate(context, builder, signature, values):
        return emit_dots(builder, *values)

    return types.int64(types.int64, types.int64), generate


@UNIT.standalone(types.int64(types.int64, types.int64))
def multiply_bytes(rounds, seed):
    """Run `rounds` rounds of PROBE_CHAINS dot products of whole registers; return their sum."""
    return _dots(rounds, seed)
