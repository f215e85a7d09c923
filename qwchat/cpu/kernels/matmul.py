"""Matrix times activations for every weight format: `y (tokens, rows) = x (tokens, columns) @ W.T`.

There are two ways to the same sums, bit for bit. With few tokens the limit is memory: codes are unpacked in registers
and multiplied at once, so that the weights stream through (`matmul_tiles`). With many tokens the limit is arithmetic:
two tiles (32 rows) at a time are unpacked into a panel in the first-level cache, and all tokens of the chunk are
multiplied by that panel (`matmul_panels`).

The kernels below count in pairs of tiles, since 32 rows are one block of activations for the next matrix.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from quant.native import simd_level
from quant.native.backend import intrinsic, types
from quant.native.simd_level import current_level
from qwchat.cpu.kernels import row_kernels, simd
from qwchat.cpu.kernels.format_kinds import BF16, F32, FIRST_IMPORTED, IDS, INTEGER_FORMATS
from qwchat.cpu.kernels.jit import inlined, kernel, standalone
from qwchat.cpu.kernels.matmul_panels import PanelOperands, emit_panel_tile, emit_unpack, panel_contents
from qwchat.cpu.kernels.matmul_tiles import PREFETCH_AHEAD, TileVectors, TileWeights, emit_float_tile, emit_integer_tile
from qwchat.cpu.kernels.records import (
    BLOCK,
    GEMV_TOKENS,
    PACKED_BLOCK_BYTES,
    PANEL_BLOCK_BYTES,
    PANEL_BLOCKS,
    PANEL_MINIMUMS,
    PANEL_PLAIN,
    PANEL_ZEROS,
    TOKEN_LANES,
)

# Numbers of vectors for which a tile is compiled, as far as the registers of the level reach. Integer formats take the
# next larger one and ignore the results of lanes without a token; with more vectors they use the panel.
INTEGER_COUNTS = {"avxvnni": (1, 2), "avx2": (1, 2), "neon": (1, 2, 3, 4)}.get(current_level(), (1, 2, 3, 4, 6, 8))
# Those of formats that only imported tensors have: fewer, since compiling takes time on every machine.
IMPORTED_COUNTS = tuple(count for count in INTEGER_COUNTS if count in (1, 2, 4))
FLOAT_COUNTS = (1, 2, 4, 8) if simd_level.lanes() == 16 else (1, 2)
_REGISTER_ROWS, _IMPORTED_ROWS, _FLOAT_TOKENS = INTEGER_COUNTS[-1], IMPORTED_COUNTS[-1], FLOAT_COUNTS[-1]

_PARTS = len(TileWeights._fields)
_SUM_BYTES = 128  # sums of one token and two tiles: (2, 16) f32


def _counts(form: int) -> tuple[int, ...]:
    """Return the numbers of vectors for which a tile of a format is compiled."""
    if form not in INTEGER_FORMATS:
        return FLOAT_COUNTS
    return IMPORTED_COUNTS if form >= FIRST_IMPORTED else INTEGER_COUNTS


def _when(builder: Any, value: Any, number: int) -> Any:
    """Open a block of code that runs if `value` equals `number`."""
    return builder.if_then(builder.icmp_signed("==", value, simd.I64(number)))


def _emit_tile(form: int, count: int, builder: Any, *values: Any) -> None:
    weights, vectors = TileWeights(*values[:_PARTS]), TileVectors(*values[_PARTS:])
    if form in INTEGER_FORMATS:
        emit_integer_tile(builder, INTEGER_FORMATS[form], count, weights, vectors)
    else:
        emit_float_tile(builder, form, count, weights, vectors)


@intrinsic
def _tile(
    typing, kind, count, codes, scales, zeros, zero_step, per_scale, minimums, super_scales, super_minimums,
    columns, x, x_stride, out, out_stride,
):  # fmt: skip
    """Choose format and number of vectors by a switch at run time, so that the kernel is compiled only once."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        for name, form in IDS.items():
            for number in _counts(form):
                with _when(builder, values[0], form), _when(builder, values[1], number):
                    emit = partial(_emit_tile, form, number)
                    simd.emit_outlined(builder, f"tile_{name}_{number}", emit, *values[2:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 15), generate


@standalone(types.void(*[types.int64] * 15))
def run_tile(
    kind, count, codes, scales, zeros, zero_step, per_scale, minimums, super_scales, super_minimums,
    columns, x, x_stride, out, out_stride,
):  # fmt: skip
    """Multiply one tile of 16 weight rows by `count` vectors.

    `kind` is the number of the format (`format_kinds`), and `count` one of its `_counts`. The arguments from `codes` to
    `super_minimums` are the fields of `TileWeights`, those from `columns` on the fields of `TileVectors`.
    """
    _tile(
        kind, count, codes, scales, zeros, zero_step, per_scale, minimums, super_scales, super_minimums,
        columns, x, x_stride, out, out_stride,
    )  # fmt: skip


@intrinsic
def _unpack(
    typing, kind, content, tile, codes, scales, zeros, zero_step, per_scale, minimums, super_scales, super_minimums,
    first, blocks, panel,
):  # fmt: skip
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind, content_here, tile = values[:3]
        weights, span = TileWeights(*values[3 : 3 + _PARTS]), values[3 + _PARTS :]
        for number, form in INTEGER_FORMATS.items():
            for content in panel_contents(form):
                with _when(builder, kind, number), _when(builder, content_here, content):
                    emit_unpack(builder, form, content, tile, weights, span)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 14), generate


@standalone(types.void(*[types.int64] * 14))
def unpack_panel(
    kind, content, tile, codes, scales, zeros, zero_step, per_scale, minimums, super_scales, super_minimums,
    first, blocks, panel,
):  # fmt: skip
    """Unpack `blocks` blocks of a weight tile, from block `first` on, into tile 0 or 1 of `panel`.

    `content` is the matrix's `panel_content`. The other arguments are as for `run_tile`; `matmul_panels` has the layout
    of a panel.
    """
    _unpack(
        kind, content, tile, codes, scales, zeros, zero_step, per_scale, minimums, super_scales, super_minimums,
        first, blocks, panel,
    )  # fmt: skip


@intrinsic
def _panel(typing, content, panel, blocks, x, x_stride, groups, sums, prefetch, prefetch_step, prefetch_lines):
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        for content in (PANEL_PLAIN, PANEL_ZEROS, PANEL_MINIMUMS):
            with _when(builder, values[0], content):
                emit_panel_tile(builder, content, PanelOperands(*values[1:]))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), generate


@standalone(types.void(*[types.int64] * 10))
def run_panel(content, panel, blocks, x, x_stride, groups, sums, prefetch, prefetch_step, prefetch_lines):
    """Multiply a panel by `groups` groups of TOKEN_LANES tokens; see `matmul_panels.PanelOperands`.

    `content` is what the panel holds besides codes and scales: the matrix's `panel_content`.
    """
    _panel(content, panel, blocks, x, x_stride, groups, sums, prefetch, prefetch_step, prefetch_lines)


@inlined
def is_float(matrix):
    """Return whether the matrix is multiplied by f32 activations, not by packed ones."""
    return matrix.kind == BF16 or matrix.kind == F32


@kernel
def _sum_float_tile(matrix, x, tokens, tile, sums):
    """Compute the sums of one tile of a float format; `sums` (tokens, 2, 16) f32, of which it writes one half."""
    token = 0
    while token < tokens:
        left = min(tokens - token, _FLOAT_TOKENS)
        count = 8 if left >= 8 else (4 if left >= 4 else (2 if left >= 2 else 1))
        codes, stride = matrix.codes + tile * matrix.codes_step, matrix.columns * 4
        here, out = x + token * stride, sums + token * _SUM_BYTES
        run_tile(matrix.kind, count, codes, 0, 0, 0, 1, 0, 0, 0, matrix.columns, here, stride, out, _SUM_BYTES)
        token += count


@kernel
def _sum_few_rows(matrix, packed, rows, tile, sums):
    """Compute the sums of one tile of an integer format, for up to _REGISTER_ROWS or _IMPORTED_ROWS packed rows."""
    count = rows if rows <= 4 else (6 if rows <= 6 else 8)
    if matrix.kind >= FIRST_IMPORTED and count == 3:
        count = 4
    run_tile(
        matrix.kind,
        count,
        matrix.codes + tile * matrix.codes_step,
        matrix.scales + tile * matrix.scales_step,
        matrix.zeros + tile * matrix.zeros_step,
        matrix.zero_step,
        matrix.blocks_per_scale,
        matrix.minimums + tile * matrix.minimums_step,
        matrix.super_scales + tile * matrix.super_scales_step,
        matrix.super_minimums + tile * matrix.super_minimums_step,
        matrix.columns,
        packed,
        matrix.columns // BLOCK * PACKED_BLOCK_BYTES,
        sums,
        _SUM_BYTES,
    )


@inlined
def panel_content(matrix):
    """Return what a panel of the matrix holds besides codes and scales."""
    if matrix.minimums != 0:
        return PANEL_MINIMUMS
    return PANEL_PLAIN if matrix.zero_step == 0 else PANEL_ZEROS


@kernel
def unpack_tile(matrix, half, tile, first, count, panel):
    """Unpack blocks `first` to `first + count - 1` of tile `tile` into tile `half` (0 or 1) of a panel."""
    unpack_panel(
        matrix.kind,
        panel_content(matrix),
        half,
        matrix.codes + tile * matrix.codes_step,
        matrix.scales + tile * matrix.scales_step,
        matrix.zeros + tile * matrix.zeros_step,
        matrix.zero_step,
        matrix.blocks_per_scale,
        matrix.minimums + tile * matrix.minimums_step,
        matrix.super_scales + tile * matrix.super_scales_step,
        matrix.super_minimums + tile * matrix.super_minimums_step,
        first,
        count,
        panel,
    )


@kernel
def _sum_many_rows(matrix, packed, rows, tile, sums, panel):
    """Compute the sums of two tiles of an integer format for any number of packed rows, panel by panel.

    If the last tile has no neighbour, it is taken twice, and the second half of the sums is ignored. While a panel is
    multiplied, the codes of the next panel (or of the next pair of tiles) are prefetched.
    """
    blocks = matrix.columns // BLOCK
    groups = (rows + TOKEN_LANES - 1) // TOKEN_LANES
    for offset in range(0, groups * TOKEN_LANES * _SUM_BYTES, 64):
        simd.store_f32(sums + offset, simd.splat(0.0))
    block_bytes = matrix.codes_step // blocks
    for first in range(0, blocks, PANEL_BLOCKS):
        count = min(PANEL_BLOCKS, blocks - first)
        for half in range(2):
            unpack_tile(matrix, half, min(tile + half, matrix.tiles - 1), first, count, panel)
        following = first + PANEL_BLOCKS
        prefetch = matrix.codes + tile * matrix.codes_step + following * block_bytes
        if following >= blocks:
            prefetch = matrix.codes + (tile + 2) * matrix.codes_step
        run_panel(
            panel_content(matrix),
            panel,
            count,
            packed + first * PACKED_BLOCK_BYTES,
            blocks * PACKED_BLOCK_BYTES,
            groups,
            sums,
            prefetch,
            matrix.codes_step,
            (PANEL_BLOCKS * block_bytes + groups * 64 - 1) // (groups * 64),
        )


@kernel
def _add_terms(sums, tokens):
    """Replace the sums of the first and the second term of each token by their sum, from row 0 on."""
    for token in range(tokens):
        for part in range(0, _SUM_BYTES, 64):
            first = sums + 2 * token * _SUM_BYTES + part
            total = simd.add(simd.load_f32(first), simd.load_f32(first + _SUM_BYTES))
            simd.store_f32(sums + token * _SUM_BYTES + part, total)


@kernel
def _sum_pair(matrix, x, packed, tokens, terms, tile, sums, panel):
    """Compute the products of two tiles with all tokens, times the row scales.

    Args:
        matrix: a MATRIX record.
        x: (tokens, columns) f32.
        packed: the same packed.
        tokens: number of tokens.
        terms: packed rows of each token.
        tile: the first of the two tiles; the second may be missing.
        sums: address of the result, (tokens, 2, 16) f32, with space for (tokens * terms, 2, 16).
        panel: address of the panel's memory.
    """
    rows = min(2, matrix.tiles - tile)
    if is_float(matrix):
        for half in range(rows):
            _sum_float_tile(matrix, x, tokens, tile + half, sums + 64 * half)
    else:
        packed_rows = tokens * terms
        if packed_rows <= (_IMPORTED_ROWS if matrix.kind >= FIRST_IMPORTED else _REGISTER_ROWS):
            for half in range(rows):
                _sum_few_rows(matrix, packed, packed_rows, tile + half, sums + 64 * half)
        else:
            _sum_many_rows(matrix, packed, packed_rows, tile, sums, panel)
        if terms == 2:
            _add_terms(sums, tokens)
    if matrix.row_scales == 0:
        return
    for half in range(rows):
        scale = simd.load_f32(matrix.row_scales + (tile + half) * 64)
        for row in range(sums + 64 * half, sums + tokens * _SUM_BYTES, _SUM_BYTES):
            simd.store_f32(row, simd.multiply(simd.load_f32(row), scale))


@inlined
def pair_count(matrix):
    """Return the number of pairs of tiles of a matrix."""
    return (matrix.tiles + 1) // 2


@kernel
def multiply_pairs(matrix, x, packed, tokens, terms, first, last, out, out_stride, accumulate, scratch):
    """Compute rows `32 * first` to `32 * last - 1` of `x @ matrix.T`, plus the bias.

    Args:
        matrix: a MATRIX record.
        x: (tokens, columns) f32, which is read for float formats.
        packed: the same packed, which is read for integer formats; see `records.ACTIVATIONS`.
        tokens: number of tokens.
        terms: packed rows of each token, 1 or 2.
        first: first pair of tiles.
        last: one past the last pair.
        out: (tokens, rows) f32.
        out_stride: bytes from one token to the next in `out`.
        accumulate: add to `out`, as for the residual stream, instead of overwriting it.
        scratch: address of `records.matmul_scratch_bytes(tokens * terms)` bytes of this thread, on a cache line.
    """
    sums = scratch + PANEL_BLOCKS * PANEL_BLOCK_BYTES
    for tile in range(2 * first, 2 * last, 2):
        _sum_pair(matrix, x, packed, tokens, terms, tile, sums, scratch)
        for half in range(min(2, matrix.tiles - tile)):
            column = (tile + half) * 64
            bias = simd.load_f32(matrix.bias + column) if matrix.bias != 0 else simd.splat(0.0)
            for token in range(tokens):
                value = simd.load_f32(sums + token * _SUM_BYTES + 64 * half)
                target = out + token * out_stride + column
                if matrix.bias != 0:
                    value = simd.add(value, bias)
                if accumulate:
                    value = simd.add(value, simd.load_f32(target))
                simd.store_f32(target, value)


@kernel
def activate_pairs(gate, up, x, packed, tokens, first, last, target, keep_f32, scratch):
    """Compute columns `32 * first` to `32 * last - 1` of SiLU(gate) * up, and quantise them into `target`.

    A pair of tiles gives exactly one block of activations for `down_proj`. `gate` and `up` are MATRIX records without
    bias; `target` is an ACTIVATIONS record, whose `packed` is written, and `x` as well if `keep_f32` is set, which a
    `down_proj` of a float format needs. `packed` has as many rows per token as `target`. The other arguments are as for
    `multiply_pairs`.
    """
    terms = target.terms
    gates = scratch + PANEL_BLOCKS * PANEL_BLOCK_BYTES
    ups = gates + (max(tokens * terms, GEMV_TOKENS) + TOKEN_LANES - 1) // TOKEN_LANES * TOKEN_LANES * _SUM_BYTES
    for pair in range(first, last):
        _sum_pair(gate, x, packed, tokens, terms, 2 * pair, gates, scratch)
        _sum_pair(up, x, packed, tokens, terms, 2 * pair, ups, scratch)
        # Two passes over all tokens, so that the latencies of many rows overlap.
        row_kernels.silu_multiply(gates, ups, gates, tokens * BLOCK)
        for token in range(tokens):
            row = gates + token * _SUM_BYTES
            block = row_kernels.packed_address(target.packed, target.columns, token, terms)
            row_kernels.quantise(row, block + pair * PACKED_BLOCK_BYTES, token, BLOCK, terms)
            if keep_f32:
                out = target.x + (token * target.columns + pair * BLOCK) * 4
                for column in range(0, BLOCK * 4, 64):
                    simd.store_f32(out + column, simd.load_f32(row + column))


@kernel
def prefetch_pair(matrix, pair):
    """Prefetch the first codes of a pair of tiles."""
    start = matrix.codes + 2 * pair * matrix.codes_step
    for line in range(start, start + min(PREFETCH_AHEAD, matrix.codes_step), 64):
        simd.prefetch(line)
