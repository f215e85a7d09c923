"""Rows of the embedding matrix as float32.

    embed_FORMAT    residual[i] = row ids[i] of the matrix

Parameters: ids i32 (rows), clamped to the matrix; codes, scales, zeros, row_scales (or values) as in `gemv`; residual
f32 (rows, columns); rows, columns, tiles, scale_shift. Grid: any; a block takes a row at a time. A value is
`row_scale * (scale * (level - zero))`, as on the CPU; the product in parentheses is exact.
"""

from __future__ import annotations

from typing import Any

from quant.formats import FORMATS, IntegerFormat
from quant.formats.dense import MatrixFormat
from quant.formats.format import TILE_ROWS
from quant.formats.integer import NIBBLE_BITS
from qwchat.cuda.kernels import dependent_launch
from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.activations import THREADS
from qwchat.cuda.kernels.integer_formats import Arithmetic, arithmetic, tile_scales
from qwchat.cuda.kernels.toolchain import A, F, I, U, cuda, device
from qwchat.cuda.kernels.unit import Kernel, Unit


def units(target: int) -> list[Unit]:
    """Return a unit with a kernel per format."""
    kernels = []
    for fmt in FORMATS.values():
        if isinstance(fmt, IntegerFormat):
            function, signature = _embed_integers(fmt, target), "lllll" + "l" + "iiii"
        elif isinstance(fmt, MatrixFormat):
            function, signature = _embed_floats(fmt, target), "ll" + "l" + "iii"
        else:
            continue
        function.__name__ = f"embed_{fmt.name}"
        kernels.append(Kernel(function, signature, THREADS, 2))
    return [Unit("embed", tuple(kernels))]


@device
def _tile_and_row(ids, index, tiles):
    """Return the tile of an id and the row within it."""
    row = p.min_i(p.max_i(p.read1i(ids + A(4) * A(index)), I(0)), I(16 * tiles - 1))
    return I(row >> 4), I(row & 15)


def _embed_integers(fmt: IntegerFormat, target: int) -> Any:
    functions, wait = arithmetic(fmt), dependent_launch.wait(target)
    addresses, load_words, values = tile_scales(functions), _load_words(fmt), _values(functions)
    block_bytes, has_row_scales = functions.block_bytes, functions.row_scales

    def kernel(ids, codes, scales, zeros, row_scales, residual, rows, columns, tiles, scale_shift):
        wait()
        groups, index = I(columns >> 5), I(cuda.blockIdx.x)
        while index < rows:
            tile, row = _tile_and_row(ids, index, tiles)
            row_scale = F(1)
            if has_row_scales:
                row_scale = p.load1f(row_scales + A(4) * A(I(16 * tile + row)))
            base = codes + A(tile) * A(groups) * A(block_bytes) + A(4) * A(row)
            scale_base, zero_base = addresses(scales, zeros, tile, I(groups >> scale_shift), I(row >> 2))
            out, eight = residual + A(4) * A(index) * A(columns), I(cuda.threadIdx.x)
            while eight < I(columns >> 3):
                group = I(I(eight >> 2) >> scale_shift)
                a, b, c, d, e, f, g, h = values(load_words(base, eight), scale_base, zero_base, group, I(row & 3))
                at = out + A(32) * A(eight)
                p.store4f(at, F(row_scale * a), F(row_scale * b), F(row_scale * c), F(row_scale * d))
                p.store4f(at + A(16), F(row_scale * e), F(row_scale * f), F(row_scale * g), F(row_scale * h))
                eight = I(eight + THREADS)
            index = I(index + I(cuda.gridDim.x))

    return kernel


def _load_words(fmt: IntegerFormat) -> Any:
    """Return a device function: the words of 8 columns of a row, as `Arithmetic.fragment` takes those of its row 0."""
    if fmt.stored_bits == NIBBLE_BITS:
        return device(lambda base, eight: (p.load1(base + A(64) * A(eight)),))

    @device
    def load_words(base, eight):
        at = base + A(128) * A(eight)
        return (p.load1(at),), (p.load1(at + A(64)),)

    return load_words


def _values(functions: Arithmetic) -> Any:
    """Return a device function: 8 columns of a row without row scale."""
    word0, word1, word2, word3 = functions.table[1] if functions.table else (0, 0, 0, 0)
    fragment, load_scales, sums = functions.fragment[0], functions.load_scales, functions.sums
    scale0, scale1, scale2, scale3 = functions.scale_of
    look_up, signs = functions.look_up, 0x8880 if functions.signed else 0

    @device
    def scale_of(raw, row):
        scale = scale0(raw)
        if row == 1:
            scale = scale1(raw)
        if row == 2:
            scale = scale2(raw)
        if row == 3:
            scale = scale3(raw)
        return scale

    @device
    def value(word, byte, start, scale):
        # Bytes above the chosen one: its sign, or zeros.
        selector = U(U(byte) * U(0x1111) | U(0x8880)) if signs else U(U(byte) | U(0x4440))
        return F(F(I(I(p.prmt(word, U(0), selector)) + start)) * F(scale))

    @device
    def values(words, scales, zeros, group, row):
        table = U(word0), U(word1), U(word2), U(word3)
        low, high = fragment(table, words)
        scale, bit = scale_of(load_scales(scales, zeros, group), row)
        start, correction = sums(I(1))
        start = I(start + I(bit * correction))
        a, b = value(low, 0, start, scale), value(low, 1, start, scale)
        c, d = value(low, 2, start, scale), value(low, 3, start, scale)
        e, f = value(high, 0, start, scale), value(high, 1, start, scale)
        g, h = value(high, 2, start, scale), value(high, 3, start, scale)
        if look_up:  # columns 0, 4, 1, 5 and 2, 6, 3, 7
            return a, c, e, g, b, d, f, h
        return a, b, c, d, e, f, g, h

    return values


def _embed_floats(fmt: MatrixFormat, target: int) -> Any:
    wait, item = dependent_launch.wait(target), fmt.dtype.itemsize
    column_bytes, half = TILE_ROWS * item, item == 2

    def kernel(ids, values, residual, rows, columns, tiles):
        wait()
        index = I(cuda.blockIdx.x)
        while index < rows:
            tile, row = _tile_and_row(ids, index, tiles)
            base, column = values + A(tile) * A(columns) * A(column_bytes) + A(item) * A(row), I(cuda.threadIdx.x)
            while column < columns:
                at = base + A(column_bytes) * A(column)
                bits = U(p.load_u16(at) << U(16)) if half else p.load1(at)
                p.store1(residual + A(4) * (A(index) * A(columns) + A(column)), bits)
                column = I(column + THREADS)
            index = I(index + I(cuda.gridDim.x))

    return kernel
