"""Rows of an embedding matrix of any format, as f32."""

from __future__ import annotations

import numpy as np

from quant.native.backend import types
from qwchat.cpu.kernels import simd
from qwchat.cpu.kernels.format_kinds import BF16
from qwchat.cpu.kernels.jit import inlined, kernel
from qwchat.cpu.kernels.matmul import is_float, unpack_tile
from qwchat.cpu.kernels.matmul_panels import PANEL_OTHERS, PANEL_SCALES, PANEL_ZERO
from qwchat.cpu.kernels.records import BLOCK, PANEL_BLOCK_BYTES, PANEL_BLOCKS

_ONE = np.float32(1)
_SIGNED_BYTES = PANEL_ZERO == 0
_peek_i32 = simd.operation(types.int32, (types.int64,), lambda b, a: simd.emit_load(b, a, simd.I32, 4))


@inlined
def _level(address):
    """Return a weight byte of a panel, which is signed where the zero point of panels is 0."""
    if _SIGNED_BYTES:
        return np.int32(simd.peek_i8(address))
    return np.int32(simd.peek_u8(address))


@kernel
def embed(matrix, token, out, scratch):
    """Dequantise row `token` of an embedding matrix, as `row_scale * (scale * (level - zero)) - subtrahend`.

    Args:
        matrix: a MATRIX record of any format.
        token: the row.
        out: (columns) f32.
        scratch: address of a panel, on a cache line.
    """
    tile, row = token // 16, token % 16
    if is_float(matrix):
        codes = matrix.codes + tile * matrix.codes_step
        for column in range(matrix.columns):
            if matrix.kind == BF16:
                simd.poke_f32(out + column * 4, simd.peek_bf16(codes + (column * 16 + row) * 2))
            else:
                simd.poke_f32(out + column * 4, simd.peek_f32(codes + (column * 16 + row) * 4))
        return
    row_scale = simd.peek_f32(matrix.row_scales + token * 4) if matrix.row_scales != 0 else _ONE
    blocks = matrix.columns // BLOCK
    for first in range(0, blocks, PANEL_BLOCKS):
        count = min(PANEL_BLOCKS, blocks - first)
        unpack_tile(matrix, 0, tile, first, count, scratch)
        for number in range(count):
            block = scratch + number * PANEL_BLOCK_BYTES
            scale = simd.peek_f32(block + PANEL_SCALES + 4 * row)
            other = block + PANEL_OTHERS + 4 * row
            zero = PANEL_ZERO if matrix.zero_step == 0 else _peek_i32(other)
            for column in range(BLOCK):
                level = _level(block + column // 4 * 64 + 4 * row + column % 4) - zero
                value = row_scale * (scale * np.float32(level))
                if matrix.minimums != 0:
                    value -= simd.peek_f32(other)
                simd.poke_f32(out + ((first + number) * BLOCK + column) * 4, value)
