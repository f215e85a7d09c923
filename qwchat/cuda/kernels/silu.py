"""SiLU of the gate times up, where gate and up are two matrices.

    silu_quantise   x8, xs, floats = SiLU(gate) * up

Parameters: gate and up f32 (rows, stride); floats f32, x8 i8 (rows, columns) and xs (rows, columns/32) as in `gemv`,
floats and x8 may be 0; stride, rows, columns. Grid: any; a warp takes 32 columns at a time.
"""

from __future__ import annotations

from typing import Any

from qwchat.cuda.kernels import dependent_launch
from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.activations import THREADS, WARPS
from qwchat.cuda.kernels.gemv_outputs import silu_product, store_quantised
from qwchat.cuda.kernels.toolchain import A, I, cuda
from qwchat.cuda.kernels.unit import Kernel, Unit


def units(target: int) -> list[Unit]:
    """Return the units of this file."""
    return [Unit("silu", (Kernel(_silu_quantise(target), "llllliii", THREADS, 2),))]


def _silu_quantise(target: int) -> Any:
    wait = dependent_launch.wait(target)

    def silu_quantise(gate, up, floats, x8, xs, stride, rows, columns):
        wait()
        lane, groups = I(cuda.threadIdx.x & 31), I(columns >> 5)
        work = I(I(cuda.blockIdx.x * WARPS) + I(cuda.threadIdx.x >> 5))
        while work < I(rows * groups):
            row = I(work // groups)
            column = I(I(32 * I(work - I(row * groups))) + lane)
            at = A(4) * (A(row) * A(stride) + A(column))
            value = silu_product(p.load1f(gate + at), p.load1f(up + at))
            place = A(row) * A(columns) + A(column)
            if floats != A(0):
                p.store1f(floats + A(4) * place, value)
            if x8 != A(0):
                store_quantised(value, lane, x8, xs, place)
            work = I(work + I(cuda.gridDim.x * WARPS))

    return silu_quantise
