"""Code generators for many tokens: a panel of weight bytes, unpacked once, times all tokens of a chunk.

A panel holds PANEL_BLOCKS blocks of 32 columns of two tiles (32 weight rows), small enough for the first-level cache.
Per block it stores (PANEL_BLOCK_BYTES)

    weight bytes  (2 tiles, 8 lines, 16 rows, 4 columns) u8
    scales        (2, 16) f32
    zero points   (2, 16) i32, for tensors that store them; or
    subtrahends   (2, 16) f32, for tensors with minimums

With AVX-512 it is multiplied in register tiles of 32 rows by 4 tokens: each broadcast of four activation bytes serves
two dot products, and all sums stay in registers. Zero points are folded into the weight bytes, so that every dot
product starts from the zero correction of the activations. Only tensors that store zero points need a multiplication
for it. Tensors with minimums subtract `subtrahend * x_scale * sum(x8)` from each block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from quant.formats import GroupedFormat
from quant.native import simd_level
from quant.native.backend import cgutils, ir
from quant.native.simd_level import current_level
from qwchat.cpu.kernels import dot_products, simd
from qwchat.cpu.kernels.format_kinds import block_bytes
from qwchat.cpu.kernels.matmul_tiles import (
    CORRECTED_ZERO,
    TileWeights,
    accumulators,
    emit_accumulate,
    emit_accumulate_minimum,
    emit_address,
    emit_group,
    emit_initial_dot,
    emit_scale,
    emit_subtrahend,
    emit_token_factor,
    emit_weight_bytes,
    emit_zeros,
)
from qwchat.cpu.kernels.records import (
    BLOCK,
    PACKED_BLOCK_BYTES,
    PANEL_BLOCK_BYTES,
    PANEL_MINIMUMS,
    PANEL_PLAIN,
    PANEL_ZEROS,
    TOKEN_LANES,
)
from qwchat.cpu.kernels.simd import F32, I8, I32, I64, V16I, V64B

_TILES = 2
_CODE_BYTES = 16 * BLOCK  # weight bytes of one tile in a block
PANEL_SCALES = _TILES * _CODE_BYTES
"""Byte of a panel's block where its scales begin."""
PANEL_OTHERS = PANEL_SCALES + 64 * _TILES
"""Byte of a panel's block where its zero points or subtrahends begin."""
PANEL_ZERO = CORRECTED_ZERO - dot_products.dot_offset(255)
"""Zero point of the bytes of a panel that does not hold zero points."""
_EACH_BYTE = 0x01010101
_SUM_BYTES = 64 * _TILES  # sums of one token


def _register_tile() -> tuple[int, int]:
    """Return the strips of rows, and the tokens, that are summed at once: as the level's registers allow."""
    return {"avx512vnni": (_TILES, TOKEN_LANES), "portable": (1, 2), "neon": (4, 2)}.get(current_level(), (2, 2))


class PanelOperands(NamedTuple):
    """Operands of a panel's product, as IR values.

    Attributes:
        panel: address of (blocks, PANEL_BLOCK_BYTES) bytes.
        blocks: blocks in the panel.
        x: address of packed activations, from the panel's first column on.
        x_stride: bytes from one group of TOKEN_LANES tokens to the next.
        groups: number of groups.
        sums: address of (TOKEN_LANES * groups, 2, 16) f32, which the products are added to.
        prefetch: address of codes to prefetch for the next panel, in its first tile.
        prefetch_step: bytes from there to the codes of its second tile.
        prefetch_lines: cache lines of each tile to prefetch per group.
    """

    panel: Any
    blocks: Any
    x: Any
    x_stride: Any
    groups: Any
    sums: Any
    prefetch: Any
    prefetch_step: Any
    prefetch_lines: Any


def _byte_shift(fmt: GroupedFormat) -> int:
    """Return the number to add to a format's weight bytes so that their zero point becomes CORRECTED_ZERO.

    Both zero points are reduced by the level's dot offset, each for its own largest byte.
    """
    return CORRECTED_ZERO - fmt.zero - dot_products.dot_offset(255) + dot_products.dot_offset(fmt.largest)


def emit_unpack(
    builder: Any, fmt: GroupedFormat, content: int, tile: Any, weights: TileWeights, span: tuple[Any, Any, Any]
) -> None:
    """Emit code that writes weight bytes, scales, and zero points or minimums of tile 0 or 1 of a panel.

    Args:
        builder: of the IR.
        fmt: the format.
        content: what the panel holds, PANEL_PLAIN, PANEL_ZEROS or PANEL_MINIMUMS. Without the tensor's own zero points,
            the bytes are shifted so that all have the zero point `PANEL_ZERO`.
        tile: 0 or 1.
        weights: the tile in the matrix.
        span: the first block, the number of blocks, and the panel's address.
    """
    first, blocks, panel = span
    with cgutils.for_range(builder, blocks) as loop:
        block = builder.add(first, loop.index)
        out = emit_address(builder, panel, loop.index, PANEL_BLOCK_BYTES)
        group = emit_group(builder, fmt, weights, block)
        scale, bits = emit_scale(builder, fmt, weights, group)
        shift = simd.constant(V64B, 0 if content == PANEL_ZEROS else _byte_shift(fmt) % 256)
        if bits is not None:
            more = builder.mul(bits, simd.constant(V16I, fmt.shift * _EACH_BYTE))
            shift = builder.add(shift, builder.bitcast(more, V64B))
        lines = emit_weight_bytes(builder, fmt, emit_address(builder, weights.codes, block, block_bytes(fmt)))
        for number, line in enumerate(lines):
            place = emit_address(builder, builder.add(out, I64(64 * number)), tile, _CODE_BYTES)
            simd.emit_store(builder, place, builder.add(line, shift), 64)
        beyond = emit_address(builder, builder.add(out, I64(PANEL_SCALES)), tile, 64)
        simd.emit_store(builder, beyond, scale, 64)
        if content != PANEL_PLAIN:
            emit = emit_zeros if content == PANEL_ZEROS else emit_subtrahend
            place = builder.add(beyond, I64(PANEL_OTHERS - PANEL_SCALES))
            simd.emit_store(builder, place, emit(builder, fmt, weights, group), 64)


def panel_contents(fmt: GroupedFormat) -> tuple[int, ...]:
    """Return what panels of the format's tensors may hold besides codes and scales."""
    if fmt.minimum_sign:
        return (PANEL_MINIMUMS,)
    return (PANEL_PLAIN, PANEL_ZEROS) if fmt.allows_zeros else (PANEL_PLAIN,)


def emit_panel_tile(builder: Any, content: int, operands: PanelOperands) -> None:
    """Emit the product of a panel with all groups of tokens. `content` is as for `emit_unpack`.

        sums[v, row] += sum over blocks: scale * x_scale * (sum(byte * x8) - zero * sum(x8))
                                         - subtrahend * x_scale * sum(x8)

    It adds to `sums`, so that a matrix wider than a panel is multiplied panel by panel.
    """
    lanes = simd_level.lanes()
    columns, tokens = _register_tile()
    with cgutils.for_range(builder, operands.groups) as loop:
        with cgutils.for_range(builder, operands.prefetch_lines) as line:
            index = builder.add(builder.mul(loop.index, operands.prefetch_lines), line.index)
            address = emit_address(builder, operands.prefetch, index, 64)
            for tile in range(_TILES):
                simd.emit_prefetch(builder, emit_address(builder, address, I64(tile), operands.prefetch_step))
        x = emit_address(builder, operands.x, loop.index, operands.x_stride)
        sums = emit_address(builder, operands.sums, loop.index, TOKEN_LANES * _SUM_BYTES)
        for column in range(0, 16 * _TILES, columns * lanes):
            for token in range(0, TOKEN_LANES, tokens):
                strips = [column + lanes * number for number in range(columns)]
                _emit_register_tile(builder, content, operands, (x, sums), (strips, range(token, token + tokens)))


def _emit_register_tile(
    builder: Any, content: int, operands: PanelOperands, places: tuple[Any, Any], part: tuple[list[int], range]
) -> None:
    """Emit the sums of one register tile: some strips of rows times some tokens of one group.

    Args:
        builder: of the IR.
        content: what the panel holds, as for `emit_unpack`.
        operands: the panel.
        places: addresses of the group's activations and sums.
        part: first rows of the strips (0 to 31), and the tokens.
    """
    (x, sums), (rows, tokens) = places, part
    lanes = simd_level.lanes()
    bytes_, words, floats = (ir.VectorType(*each) for each in ((I8, 4 * lanes), (I32, lanes), (F32, lanes)))
    pairs = [(row, token) for token in tokens for row in rows]
    addresses = {(row, token): builder.add(sums, I64(_SUM_BYTES * token + 4 * row)) for row, token in pairs}
    totals = dict(zip(pairs, accumulators(builder, len(pairs), lanes), strict=True))
    for pair, total in totals.items():
        builder.store(simd.emit_load(builder, addresses[pair], floats, 4 * lanes), total)
    with cgutils.for_range(builder, operands.blocks) as loop:
        block = emit_address(builder, operands.panel, loop.index, PANEL_BLOCK_BYTES)
        here = emit_address(builder, x, loop.index, PACKED_BLOCK_BYTES)

        def load(offset: int, llvm_type: Any, block: Any = block) -> Any:
            return simd.emit_load(builder, builder.add(block, I64(offset)), llvm_type, 4 * lanes)

        corrections = {token: emit_token_factor(builder, here, token, 1, I32, lanes) for token in tokens}
        zeros: dict[int, Any] = dict.fromkeys(rows, PANEL_ZERO)
        if content == PANEL_ZEROS:
            zeros = {row: load(PANEL_OTHERS + 4 * row, words) for row in rows}
        dots = {(row, token): emit_initial_dot(builder, corrections[token], zeros[row]) for row, token in pairs}
        for number in range(BLOCK // 4):
            x4 = {
                token: simd.emit_bytes4(builder, builder.add(here, I64(token * BLOCK + 4 * number)), lanes)
                for token in tokens
            }
            for row in rows:
                line = load(row // 16 * _CODE_BYTES + 64 * number + row % 16 * 4, bytes_)
                for token in tokens:
                    dot = dot_products.emit_offset_dot(builder, dots[row, token], line, x4[token])
                    dots[row, token] = simd.emit_pin(builder, dot)
        for row in rows:
            scale = load(PANEL_SCALES + 4 * row, floats)
            for token in tokens:
                x_scale = emit_token_factor(builder, here, token, 0, F32, lanes)
                emit_accumulate(builder, totals[row, token], dots[row, token], scale, x_scale)
        if content == PANEL_MINIMUMS:
            for row in rows:
                subtrahend = load(PANEL_OTHERS + 4 * row, floats)
                for token in tokens:
                    emit_accumulate_minimum(builder, totals[row, token], subtrahend, here, token)
    for pair, total in totals.items():
        simd.emit_store(builder, addresses[pair], builder.load(total), 4 * lanes)
