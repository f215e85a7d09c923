"""Products of integer matrices with 1, 2, or 3 to 8 tokens.

Kernels per format, with `r1`, `r2` or `r8` for the tokens:

    norm_gemv_FORMAT_r1     out = RMSNorm(residual) @ W.T + bias
    gemv_FORMAT_r1          out = x @ W.T + bias, or added to out
    norm_gate_up_FORMAT_r1  SiLU(n @ gate.T) * (n @ up.T) with n = RMSNorm(residual); gate and up are one matrix

A token gets the same bits from each of the three counts, if `split` is the same. Parameters:

    residual, norm, epsilon     rows f32 (tokens, columns), weights f32 (columns), added to the mean of the squares
    first                       address of the number (i32) of the first row of the residual, or 0 for row 0
    x8, xs                      quantised activations, read by gemv_*, written by norm_gate_up_* (x8 may be 0)
    floats                      f32 (tokens, intermediate), written by norm_gate_up_*; may be 0
    codes, scales, zeros, row_scales, bias
                                parts of the matrix; zeros, row_scales and bias (f32, 16 * tiles) may be 0
    scale_shift                 log2 of the groups of 32 columns that share a scale
    out, out_stride, accumulate f32 (tokens, out_stride), written up to row 16 * tiles; not 0: added to
    rows, columns, tiles        tokens, columns, tiles of 16 rows (gate and up together)
    split                       log2 of the warps that share a tile, 0 to 3; norm_gate_up_*: 0 or 1

Grid: any; `units` of work are `ceil(tiles * 2**split / 8)`, half as many for r8. Dynamic shared memory: none for
gemv_*, else `rows * (columns / 32 | 1) * 40` bytes.

Bytes in flight: a warp has one step on its way, 2 KB of 4-bit codes. Three blocks of 8 warps give 48 KB per
multiprocessor; 4.8 TB/s at 700 ns on 132 multiprocessors need 25 KB. The r8 kernels have 8 loads of 512 bytes per warp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quant.formats import FORMATS, IntegerFormat
from qwchat.cuda.kernels import dependent_launch, gemv_dot, gemv_mma
from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.activations import THREADS, norm_rows, padded
from qwchat.cuda.kernels.gemv_outputs import (
    first_weights,
    gate_up_outputs,
    gate_up_tile,
    plain_tile,
    run_units,
    store_outputs,
)
from qwchat.cuda.kernels.integer_formats import Arithmetic, arithmetic
from qwchat.cuda.kernels.toolchain import A, F, I, U, cuda, device
from qwchat.cuda.kernels.unit import Kernel, Unit

TOKENS = (1, 2, 8)
"""Tokens that the kernels compute; the last are for 3 to 8."""
_BLOCKS_PER_SM = {1: 3, 2: 2, 8: 2}


def units(target: int) -> list[Unit]:
    """Return a unit per integer format."""
    integers = [fmt for fmt in FORMATS.values() if isinstance(fmt, IntegerFormat)]
    return [Unit(f"gemv_{fmt.name}", tuple(_kernels(fmt, target))) for fmt in integers]


def _kernels(fmt: IntegerFormat, target: int) -> list[Kernel]:
    functions = arithmetic(fmt)
    kernels = []
    for tokens in TOKENS:
        parts = _Parts(functions, tokens, target)
        for make, name, signature in (
            (_norm_gemv, "norm_gemv", "llfl" + "lllll" + "li" + "iiiii"),
            (_gemv, "gemv", "ll" + "lllll" + "lii" + "iiiii"),
            (_norm_gate_up, "norm_gate_up", "llf" + "lllll" + "lll" + "iiiii"),
        ):
            function = make(parts)
            function.__name__ = f"{name}_{fmt.name}_r{tokens}"
            kernels.append(Kernel(function, signature, THREADS, _BLOCKS_PER_SM[tokens]))
    return kernels


class _Parts:
    """Device functions that the kernels of a format and a number of tokens are made of."""

    def __init__(self, fmt: Arithmetic, tokens: int, target: int) -> None:
        loops: Any = gemv_mma if tokens == TOKENS[-1] else gemv_dot
        per_warp, option = loops.TILES_PER_WARP, target if tokens == TOKENS[-1] else tokens
        self.begin = _begin(fmt, loops is gemv_mma, per_warp, target)
        self.norm_front = _norm_front(fmt.look_up)
        self.run: Callable[[bool, Any, Any], Any] = lambda shared, tile_of, finish: run_units(
            loops.accumulate(fmt, option, shared), tile_of, finish, per_warp, tokens
        )
        self.store = store_outputs(tokens, fmt.row_scales)
        self.gate_up = gate_up_outputs(tokens, fmt.row_scales)


def _norm_gemv(parts: _Parts) -> Any:
    begin, front, run = parts.begin, parts.norm_front, parts.run(True, plain_tile, parts.store)

    def kernel(
        residual, norm, epsilon, first, codes, scales, zeros, row_scales, bias, out, out_stride, rows, columns, tiles,
        scale_shift, split,
    ):  # fmt: skip
        matrix = codes, scales, zeros, scale_shift, I(columns >> 5)
        table = begin(matrix, row_scales, bias, plain_tile, tiles, split)
        row = I(0)
        if first != A(0):
            row = p.read1i(first)
        x = front(residual + A(4) * A(row) * A(columns), norm, epsilon, rows, columns)
        run(table, x, rows, matrix, row_scales, bias, tiles, split, (out, out_stride, I(0)))

    return kernel


def _gemv(parts: _Parts) -> Any:
    begin, run = parts.begin, parts.run(False, plain_tile, parts.store)

    def kernel(
        x8, xs, codes, scales, zeros, row_scales, bias, out, out_stride, accumulate, rows, columns, tiles,
        scale_shift, split,
    ):  # fmt: skip
        matrix = codes, scales, zeros, scale_shift, I(columns >> 5)
        table = begin(matrix, row_scales, bias, plain_tile, tiles, split)
        x = x8, xs, columns, I(columns >> 2), rows
        run(table, x, rows, matrix, row_scales, bias, tiles, split, (out, out_stride, accumulate))

    return kernel


def _norm_gate_up(parts: _Parts) -> Any:
    begin, front, run = parts.begin, parts.norm_front, parts.run(True, gate_up_tile, parts.gate_up)

    def kernel(
        residual, norm, epsilon, codes, scales, zeros, row_scales, bias, floats, x8, xs, rows, columns, tiles,
        scale_shift, split,
    ):  # fmt: skip
        matrix = codes, scales, zeros, scale_shift, I(columns >> 5)
        table = begin(matrix, row_scales, bias, gate_up_tile, tiles, split)
        x = front(residual, norm, epsilon, rows, columns)
        run(table, x, rows, matrix, row_scales, bias, tiles, split, (floats, x8, xs))

    return kernel


def _begin(fmt: Arithmetic, tensor_cores: bool, per_warp: int, target: int) -> Any:
    """Return a device function: prefetch the block's first weights, wait for the kernel before, return the table.

    Weights are on their way while the kernel before ends (sm_90) and while RMSNorm is computed. The table goes through
    shared memory: ptxas copies constants into registers before most of their uses.
    """
    wait, prefetch = dependent_launch.wait(target), first_weights(8 * fmt.block_bytes, per_warp)
    has_table, block_bytes = fmt.table is not None, fmt.block_bytes
    word0, word1, word2, word3 = fmt.table[tensor_cores] if fmt.table else (0, 0, 0, 0)

    @device
    def begin(matrix, row_scales, bias, tile_of, tiles, split):
        prefetch(matrix[0], A(matrix[4]) * A(block_bytes), row_scales, bias, tile_of, tiles, split)
        wait()
        if has_table:
            words = p.shared_address(p.address_of(cuda.shared.array(4, U)))
            if cuda.threadIdx.x == 0:
                p.shared_store4(words, U(word0), U(word1), U(word2), U(word3))
            cuda.syncthreads()
            return p.shared_load4(words)
        return U(0), U(0), U(0), U(0)

    return begin


def _norm_front(look_up: bool) -> Any:
    """Return a device function: RMSNorm of the block's tokens into dynamic shared memory."""
    normalise = norm_rows(look_up)

    @device
    def front(residual, norm, epsilon, rows, columns):
        stride = padded(I(columns >> 5))
        codes = p.shared_address(p.address_of(cuda.shared.array(0, U)))
        sums = p.shared_address(p.address_of(cuda.shared.array(64, F)))
        records = U(codes + U(I(rows * stride) * 32))
        normalise(residual, norm, epsilon, rows, columns, codes, records, sums)
        return codes, records, I(32 * stride), I(8 * stride), rows

    return front
