"""Code generators for many tokens: a panel of weight bytes, unpacked once, times all tokens of a chunk.

A panel holds PANEL_BLOCKS blocks of 32 columns of two tiles (32 weight rows), small enough for the first-level cache.
The tile above it is 32 rows times 4 tokens: each broadcast of four activation bytes serves two dot products, and all
sums stay in registers.  Zero points are folded into the bytes, so that every dot product starts from the offset that
comes with the activations; only tensors that store zero points multiply for it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from quant.formats import IntegerFormat
from quant.native import simd_level
from quant.native.backend import cgutils, ir
from quant.native.simd_level import current_level
from qwchat.cpu.kernels import simd
from qwchat.cpu.kernels.format_kinds import block_bytes
from qwchat.cpu.kernels.matmul_tiles import (
    UNSIGNED_ZERO,
    TileWeights,
    accumulators,
    at,
    emit_accumulate,
    emit_group,
    emit_scale,
    emit_slot,
    emit_start,
    emit_weight_bytes,
    emit_zeros,
)
from qwchat.cpu.kernels.records import BLOCK, PANEL_BLOCK, SLOTS, SLOTS_BLOCK
from qwchat.cpu.kernels.simd import F32, I8, I32, I64, V16I, V64B

_TILES = 2
_CODES = 16 * BLOCK  # bytes of codes of one tile; then come the scales and the zero points of both
_EACH_BYTE = 0x01010101
_SUMS = 64 * _TILES  # bytes of one token's sums


def _shape() -> tuple[int, int]:
    """Strips of rows, and tokens, that are summed at once: as many as the level has registers for."""
    return {"avx512vnni": (_TILES, SLOTS), "portable": (1, 2), "neon": (4, 2)}.get(current_level(), (2, 2))


class PanelOperands(NamedTuple):
    """Operands of a panel tile, as IR values.

    `panel`: (`blocks`, PANEL_BLOCK) bytes.  `x`: packed activations from the panel's first column on,
    `x_stride` bytes from one group of SLOTS tokens to the next, `groups` of them.  `sums` (SLOTS * groups, 2, 16)
    f32 is added to.  `lines`: cache lines at `ahead` and at `ahead + ahead_step` to ask for in each group.
    """

    panel: Any
    blocks: Any
    x: Any
    x_stride: Any
    groups: Any
    sums: Any
    ahead: Any
    ahead_step: Any
    lines: Any


def _byte_shift(fmt: IntegerFormat) -> int:
    """What the bytes of a format must gain for the zero point of a panel to be UNSIGNED_ZERO less the dot offset."""
    return UNSIGNED_ZERO - fmt.zero - simd.dot_offset(255) + simd.dot_offset(fmt.largest)


def emit_unpack(
    builder: Any, fmt: IntegerFormat, stored: bool, tile: int, weights: TileWeights, span: tuple[Any, Any, Any]
) -> None:
    """Writes the bytes, scales and zero points of tile 0 or 1 of a panel.

    `span`: the first block, the number of blocks, the panel's address.  `stored`: the zero points of the tensor go
    into the panel; otherwise the bytes are shifted so that they all have the same.
    """
    first, blocks, panel = span
    with cgutils.for_range(builder, blocks) as loop:
        block = builder.add(first, loop.index)
        out = at(builder, panel, loop.index, PANEL_BLOCK)
        group = emit_group(builder, fmt, weights, block)
        scale, bits = emit_scale(builder, fmt, weights, group)
        shift = simd.constant(V64B, 0 if stored else _byte_shift(fmt) % 256)
        if bits is not None:
            more = builder.mul(bits, simd.constant(V16I, fmt.shift * _EACH_BYTE))
            shift = builder.add(shift, builder.bitcast(more, V64B))
        lines = emit_weight_bytes(builder, fmt, at(builder, weights.codes, block, block_bytes(fmt)))
        for number, line in enumerate(lines):
            place = builder.add(out, I64(tile * _CODES + 64 * number))
            simd.emit_store(builder, place, builder.add(line, shift), 64)
        beyond = _TILES * _CODES + 64 * tile
        simd.emit_store(builder, builder.add(out, I64(beyond)), scale, 64)
        if stored:
            zeros = emit_zeros(builder, fmt, weights, group)
            simd.emit_store(builder, builder.add(out, I64(beyond + 64 * _TILES)), zeros, 64)


def has_stored_zeros(fmt: IntegerFormat) -> tuple[bool, ...]:
    """Whether tensors of a format may bring zero points of their own."""
    return (False, True) if fmt.allows_zeros else (False,)


def emit_panel_tile(builder: Any, stored: bool, operands: PanelOperands) -> None:
    """`sums[v, lane] += sum over blocks: scale * x_scale * (sum(byte * x8) - zero * sum(x8))`, for all tokens."""
    lanes = simd_level.lanes()
    columns, tokens = _shape()
    with cgutils.for_range(builder, operands.groups) as loop:
        with cgutils.for_range(builder, operands.lines) as line:
            index = builder.add(builder.mul(loop.index, operands.lines), line.index)
            address = at(builder, operands.ahead, index, 64)
            for tile in range(_TILES):
                simd.emit_prefetch(builder, at(builder, address, I64(tile), operands.ahead_step))
        x = at(builder, operands.x, loop.index, operands.x_stride)
        sums = at(builder, operands.sums, loop.index, SLOTS * _SUMS)
        for column in range(0, 16 * _TILES, columns * lanes):
            for token in range(0, SLOTS, tokens):
                strips = [column + lanes * number for number in range(columns)]
                _emit_part(builder, stored, operands, (x, sums), (strips, range(token, token + tokens)))


def _emit_part(
    builder: Any, stored: bool, operands: PanelOperands, places: tuple[Any, Any], part: tuple[list[int], range]
) -> None:
    """The sums of a `part`, rows from each of some on times some tokens, of one group of tokens.

    `places`: addresses of the group's activations and sums.
    """
    (x, sums), (rows, tokens) = places, part
    lanes = simd_level.lanes()
    bytes_, words, floats = (ir.VectorType(*each) for each in ((I8, 4 * lanes), (I32, lanes), (F32, lanes)))
    pairs = [(row, token) for token in tokens for row in rows]
    addresses = {(row, token): builder.add(sums, I64(_SUMS * token + 4 * row)) for row, token in pairs}
    slots = dict(zip(pairs, accumulators(builder, len(pairs), lanes), strict=True))
    for pair, slot in slots.items():
        builder.store(simd.emit_load(builder, addresses[pair], floats, 4 * lanes), slot)
    with cgutils.for_range(builder, operands.blocks) as loop:
        block = at(builder, operands.panel, loop.index, PANEL_BLOCK)
        here = at(builder, x, loop.index, SLOTS_BLOCK)

        def load(offset: int, llvm_type: Any, block: Any = block) -> Any:
            return simd.emit_load(builder, builder.add(block, I64(offset)), llvm_type, 4 * lanes)

        offsets = {token: emit_slot(builder, here, token, 1, I32, lanes) for token in tokens}
        zeros: dict[int, Any] = dict.fromkeys(rows, UNSIGNED_ZERO - simd.dot_offset(255))
        if stored:
            zeros = {row: load(_TILES * (_CODES + 64) + 4 * row, words) for row in rows}
        dots = {(row, token): emit_start(builder, offsets[token], zeros[row]) for row, token in pairs}
        for number in range(BLOCK // 4):
            x4 = {
                token: simd.emit_bytes4(builder, builder.add(here, I64(token * BLOCK + 4 * number)), lanes)
                for token in tokens
            }
            for row in rows:
                line = load(row // 16 * _CODES + 64 * number + row % 16 * 4, bytes_)
                for token in tokens:
                    dot = simd.emit_offset_dot(builder, dots[row, token], line, x4[token])
                    dots[row, token] = simd.emit_pin(builder, dot)
        for row in rows:
            scale = load(_TILES * _CODES + 4 * row, floats)
            for token in tokens:
                x_scale = emit_slot(builder, here, token, 0, F32, lanes)
                emit_accumulate(builder, slots[row, token], dots[row, token], scale, x_scale)
    for pair, slot in slots.items():
        simd.emit_store(builder, addresses[pair], builder.load(slot), 4 * lanes)
