"""Products of bf16 and f32 matrices with 1, 2, or 3 to 8 tokens, in float32.

Kernels as in `gemv`, with float activations and without quantisation:

    norm_gemv_bf16_r1     out = RMSNorm(residual) @ W.T + bias
    gemv_bf16_r1          out = x @ W.T + bias, or added to out
    norm_gate_up_bf16_r1  SiLU(n @ gate.T) * (n @ up.T) with n = RMSNorm(residual); stored as f32, quantised, or both

Parameters are those of `gemv`, except that `values` stands for the parts of the matrix, and that x is f32 (tokens,
columns). No dynamic shared memory.

A lane loads 16 bytes: 8 rows (bf16) or 4 rows (f32) of a column, for 4 consecutive columns. A warp takes 64 or 32
columns; with `w` warps on the tile, step s of warp k begins at `k + w * s` times that. Each lane adds its columns in
order, by fused multiply-adds; then lanes are added across distances from 2 (bf16) or 4 (f32) to 16; then
warps, in order. A token has the same bits in each kernel.
"""

from __future__ import annotations

from typing import Any

from quant.formats import FORMATS
from quant.formats.dense import MatrixFormat
from quant.formats.format import TILE_ROWS
from qwchat.cuda.kernels import dependent_launch
from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.activations import THREADS, norm_factor, square_sums
from qwchat.cuda.kernels.gemv_outputs import (
    first_weights,
    gate_up_outputs,
    gate_up_tile,
    plain_tile,
    run_units,
    store_outputs,
)
from qwchat.cuda.kernels.toolchain import A, F, I, U, cuda, device
from qwchat.cuda.kernels.unit import Kernel, Unit

TOKENS = (1, 2, 8)
_LOAD_BYTES, _COLUMNS = 16, 4
_STEP_BYTES = 2048
_BLOCKS_PER_SM = {1: 3, 2: 2, 8: 1}


def units(target: int) -> list[Unit]:
    """Return a unit per format."""
    dense = [fmt for fmt in FORMATS.values() if isinstance(fmt, MatrixFormat)]
    return [Unit(f"gemv_{fmt.name}", tuple(_kernels(fmt, target))) for fmt in dense]


def _kernels(fmt: MatrixFormat, target: int) -> list[Kernel]:
    kernels = []
    for tokens in TOKENS:
        for make, name, signature in (
            (_norm_gemv, "norm_gemv", "llfl" + "ll" + "li" + "iiii"),
            (_gemv, "gemv", "l" + "ll" + "lii" + "iiii"),
            (_norm_gate_up, "norm_gate_up", "llf" + "ll" + "lll" + "iiii"),
        ):
            function = make(fmt, tokens, target)
            function.__name__ = f"{name}_{fmt.name}_r{tokens}"
            kernels.append(Kernel(function, signature, THREADS, _BLOCKS_PER_SM[tokens]))
    return kernels


def _norm_gemv(fmt: MatrixFormat, tokens: int, target: int) -> Any:
    begin, front = _begin(fmt, target), _norm_front(tokens)
    run = run_units(_accumulate(fmt, tokens, True), plain_tile, store_outputs(tokens, False), 1, tokens)

    def kernel(residual, norm, epsilon, first, values, bias, out, out_stride, rows, columns, tiles, split):
        begin(values, bias, plain_tile, columns, tiles, split)
        row = I(0)
        if first != A(0):
            row = p.read1i(first)
        x = residual + A(4) * A(row) * A(columns)
        factors = front(x, epsilon, rows, columns)
        run(U(0), (x, norm, factors, rows), rows, (values, columns), A(0), bias, tiles, split, (out, out_stride, I(0)))

    return kernel


def _gemv(fmt: MatrixFormat, tokens: int, target: int) -> Any:
    begin = _begin(fmt, target)
    run = run_units(_accumulate(fmt, tokens, False), plain_tile, store_outputs(tokens, False), 1, tokens)

    def kernel(x, values, bias, out, out_stride, accumulate, rows, columns, tiles, split):
        begin(values, bias, plain_tile, columns, tiles, split)
        ends = out, out_stride, accumulate
        run(U(0), (x, A(0), U(0), rows), rows, (values, columns), A(0), bias, tiles, split, ends)

    return kernel


def _norm_gate_up(fmt: MatrixFormat, tokens: int, target: int) -> Any:
    begin, front = _begin(fmt, target), _norm_front(tokens)
    run = run_units(_accumulate(fmt, tokens, True), gate_up_tile, gate_up_outputs(tokens, False), 1, tokens)

    def kernel(residual, norm, epsilon, values, bias, floats, x8, xs, rows, columns, tiles, split):
        begin(values, bias, gate_up_tile, columns, tiles, split)
        factors = front(residual, epsilon, rows, columns)
        x = residual, norm, factors, rows
        run(U(0), x, rows, (values, columns), A(0), bias, tiles, split, (floats, x8, xs))

    return kernel


def _begin(fmt: MatrixFormat, target: int) -> Any:
    """Return a device function: prefetch the block's first weights, then wait for the kernel before."""
    wait, prefetch = dependent_launch.wait(target), first_weights(_STEP_BYTES, 1)
    column_bytes = TILE_ROWS * fmt.dtype.itemsize

    @device
    def begin(values, bias, tile_of, columns, tiles, split):
        prefetch(values, A(columns) * A(column_bytes), A(0), bias, tile_of, tiles, split)
        wait()

    return begin


def _norm_front(tokens: int) -> Any:
    """Return a device function: shared address of the factors of RMSNorm, one per row."""
    sums_size = 8 * tokens

    @device
    def front(x, epsilon, rows, columns):
        sums = p.shared_address(p.address_of(cuda.shared.array(sums_size, F)))
        factors = p.shared_address(p.address_of(cuda.shared.array(8, F)))
        square_sums(x, rows, columns, sums)
        cuda.syncthreads()
        row = I(cuda.threadIdx.x)
        if row < rows:
            p.shared_store1f(U(factors + U(4) * U(row)), norm_factor(sums, row, columns, epsilon))
        cuda.syncthreads()
        return factors

    return front


def _accumulate(fmt: MatrixFormat, tokens: int, normed: bool) -> Any:
    """Return the device function that computes a tile's sums; its arguments are those of `gemv_dot.accumulate`."""
    wide = fmt.dtype.itemsize == 2
    rows_per_lane = _LOAD_BYTES // fmt.dtype.itemsize
    lanes_per_column = TILE_ROWS // rows_per_lane
    column_bytes, row_bits = TILE_ROWS * fmt.dtype.itemsize, lanes_per_column.bit_length() - 1
    step_columns = _COLUMNS * 32 // lanes_per_column
    add_column = _add_eight if wide else _add_four
    store = _store_eight if wide else _store_four
    add_token = _add_token(add_column, normed)
    two, many = tokens > 1, tokens > 2

    @device
    def zeros():
        if wide:
            return F(0), F(0), F(0), F(0), F(0), F(0), F(0), F(0)
        return F(0), F(0), F(0), F(0)

    @device
    def accumulate(table, x, matrix, tile_of, work, partial):
        values, columns = matrix
        unit, slots, tiles, split = work
        lane, warp = I(cuda.threadIdx.x & 31), I(cuda.threadIdx.x >> 5)
        tile, exists = tile_of(unit, I(warp >> split), slots, tiles)
        part = I(warp & I(I(I(1) << split) - 1))
        column = I(I(step_columns * part) + 4 * I(lane >> row_bits))
        if not exists:
            column = columns
        base = values + A(tile) * A(columns) * A(column_bytes) + A(16) * A(I(lane & (lanes_per_column - 1)))
        t0, t1, t2, t3 = zeros(), zeros(), zeros(), zeros()
        t4, t5, t6, t7 = zeros(), zeros(), zeros(), zeros()
        while column < columns:
            at = base + A(column_bytes) * A(column)
            a, b = p.load4(at), p.load4(at + A(column_bytes))
            c, d = p.load4(at + A(2 * column_bytes)), p.load4(at + A(3 * column_bytes))
            words = a, b, c, d
            t0 = add_token(words, x, columns, column, I(0), t0)
            if two:
                t1 = add_token(words, x, columns, column, I(1), t1)
            if many:
                t2 = add_token(words, x, columns, column, I(2), t2)
                t3 = add_token(words, x, columns, column, I(3), t3)
                t4 = add_token(words, x, columns, column, I(4), t4)
                t5 = add_token(words, x, columns, column, I(5), t5)
                t6 = add_token(words, x, columns, column, I(6), t6)
                t7 = add_token(words, x, columns, column, I(7), t7)
            column = I(column + (I(step_columns) << split))
        at = U(partial + U(64 * tokens) * U(warp))
        store(at, lane, t0)
        if two:
            store(U(at + U(64)), lane, t1)
        if many:
            store(U(at + U(128)), lane, t2)
            store(U(at + U(192)), lane, t3)
            store(U(at + U(256)), lane, t4)
            store(U(at + U(320)), lane, t5)
            store(U(at + U(384)), lane, t6)
            store(U(at + U(448)), lane, t7)

    return accumulate


def _add_token(add_column: Any, normed: bool) -> Any:
    """Return a device function: add the products of 4 columns and a token; the last token stands for those after it."""

    @device
    def add_token(words, x, columns, column, token, totals):
        base, norm, factors, rows = x
        token = p.min_i(token, I(rows - 1))
        a, b, c, d = p.read4f(base + A(4) * (A(token) * A(columns) + A(column)))
        if normed:
            factor = p.shared_load1f(U(factors + U(4) * U(token)))
            wa, wb, wc, wd = p.load4f_cached(norm + A(4) * A(column))
            a, b, c, d = F(wa * F(a * factor)), F(wb * F(b * factor)), F(wc * F(c * factor)), F(wd * F(d * factor))
        totals = add_column(words[0], a, totals)
        totals = add_column(words[1], b, totals)
        totals = add_column(words[2], c, totals)
        return add_column(words[3], d, totals)

    return add_token


@device
def _low(word):
    return p.float_of_bits(U(word << U(16)))


@device
def _high(word):
    return p.float_of_bits(U(word & U(0xFFFF0000)))


@device
def _add_eight(words, x, t):
    a, b, c, d = words
    return (
        p.fma(_low(a), x, t[0]),
        p.fma(_high(a), x, t[1]),
        p.fma(_low(b), x, t[2]),
        p.fma(_high(b), x, t[3]),
        p.fma(_low(c), x, t[4]),
        p.fma(_high(c), x, t[5]),
        p.fma(_low(d), x, t[6]),
        p.fma(_high(d), x, t[7]),
    )


@device
def _add_four(words, x, t):
    a, b, c, d = words
    return (
        p.fma(p.float_of_bits(a), x, t[0]),
        p.fma(p.float_of_bits(b), x, t[1]),
        p.fma(p.float_of_bits(c), x, t[2]),
        p.fma(p.float_of_bits(d), x, t[3]),
    )


@device
def _across(a, b, c, d, distance):
    """Add four sums across a distance of lanes."""
    return (
        F(a + p.shuffle_xor_f(a, distance)),
        F(b + p.shuffle_xor_f(b, distance)),
        F(c + p.shuffle_xor_f(c, distance)),
        F(d + p.shuffle_xor_f(d, distance)),
    )


@device
def _store_eight(at, lane, t):
    """Add the sums of the 16 lanes that share rows; lanes 0 and 1 store them."""
    a, b, c, d, e, f, g, h = t
    for distance in (2, 4, 8, 16):
        a, b, c, d = _across(a, b, c, d, U(distance))
        e, f, g, h = _across(e, f, g, h, U(distance))
    if lane < 2:
        at = U(at + U(32) * U(lane))
        p.shared_store4f(at, a, b, c, d)
        p.shared_store4f(U(at + U(16)), e, f, g, h)


@device
def _store_four(at, lane, t):
    """Add the sums of the 8 lanes that share rows; lanes 0 to 3 store them."""
    a, b, c, d = t
    for distance in (4, 8, 16):
        a, b, c, d = _across(a, b, c, d, U(distance))
    if lane < 4:
        p.shared_store4f(U(at + U(16) * U(lane)), a, b, c, d)
