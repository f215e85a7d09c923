"""Code generators for many tokens: a panel of weight bytes, unpacked once, times all tokens of a chunk.

A panel holds PANEL_BLOCKS blocks of 32 columns of two tiles (32 weight rows), small enough for the first-level cache.
The tile above it is 32 rows times 4 tokens: each broadcast of four activation bytes serves two dot products, and all
sums stay in registers.  Zero points are folded into the bytes, so that every dot product starts from the offset that
comes with the activations; only tensors that store zero points multiply for it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba.core import cgutils

from qwchat.kernels import simd
from qwchat.kernels.formats import LIN4, LIN8, IntegerFormat
from qwchat.kernels.level import current_level
from qwchat.kernels.records import BLOCK, PANEL_BLOCK, SLOTS, SLOTS_BLOCK
from qwchat.kernels.simd import F32, I32, I64, V16F, V16I, V64B
from qwchat.kernels.tiles import (
    UNSIGNED_ZERO,
    Weights,
    accumulators,
    at,
    emit_accumulate,
    emit_scale,
    emit_slot,
    emit_start,
    emit_weight_bytes,
    emit_zeros,
)

_TILES = 2
_CODES = 16 * BLOCK  # bytes of codes of one tile; then come the scales and the zero points of both
# Tiles and tokens that are summed at once: as many as the level has registers for.
_SHAPE = (_TILES, SLOTS) if current_level() == "avx512vnni" else (1, 2)
_EACH_BYTE = 0x01010101
_SUMS = 64 * _TILES  # bytes of one token's sums


class Panel(NamedTuple):
    """Operands of a panel tile, as IR values.

    ``panel``: (``blocks``, PANEL_BLOCK) bytes.  ``x``: packed activations from the panel's first column on,
    ``x_stride`` bytes from one group of SLOTS tokens to the next, ``groups`` of them.  ``sums`` (SLOTS * groups, 2, 16)
    f32 is added to.  ``lines``: cache lines at ``ahead`` and at ``ahead + ahead_step`` to ask for in each group.
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


def _byte_shift(form: IntegerFormat) -> int:
    """What the bytes of a format must gain for the zero point of a panel to be UNSIGNED_ZERO less the dot offset."""
    return UNSIGNED_ZERO - form.zero - simd.dot_offset(255) + simd.dot_offset(form.largest)


def emit_unpack(
    builder: Any, kind: int, form: IntegerFormat, stored: bool, tile: int, weights: Weights, span: tuple[Any, Any, Any]
) -> None:
    """Writes the bytes, scales and zero points of tile 0 or 1 of a panel.

    ``span``: the first block, the number of blocks, the panel's address.  ``stored``: the zero points of the tensor go
    into the panel; otherwise the bytes are shifted so that they all have the same.
    """
    first, blocks, panel = span
    with cgutils.for_range(builder, blocks) as loop:
        block = builder.add(first, loop.index)
        out = at(builder, panel, loop.index, PANEL_BLOCK)
        scale, bits = emit_scale(builder, kind, weights, block)
        shift = simd.constant(V64B, 0 if stored else _byte_shift(form) % 256)
        if bits is not None:
            more = builder.mul(bits, simd.constant(V16I, form.shift * _EACH_BYTE))
            shift = builder.add(shift, builder.bitcast(more, V64B))
        lines = emit_weight_bytes(builder, form, at(builder, weights.codes, block, form.block_bytes))
        for number, line in enumerate(lines):
            place = builder.add(out, I64(tile * _CODES + 64 * number))
            simd.emit_store(builder, place, builder.add(line, shift), 64)
        beyond = _TILES * _CODES + 64 * tile
        simd.emit_store(builder, builder.add(out, I64(beyond)), scale, 64)
        if stored:
            zeros = emit_zeros(builder, form, weights, block)
            simd.emit_store(builder, builder.add(out, I64(beyond + 64 * _TILES)), zeros, 64)


def has_stored_zeros(kind: int) -> tuple[bool, ...]:
    """Whether tensors of a format may bring zero points of their own."""
    return (False, True) if kind in (LIN4, LIN8) else (False,)


def emit_panel_tile(builder: Any, stored: bool, operands: Panel) -> None:
    """``sums[v, lane] += sum over blocks: scale * x_scale * (sum(byte * x8) - zero * sum(x8))``, for all tokens."""
    tiles, tokens = _SHAPE
    with cgutils.for_range(builder, operands.groups) as loop:
        with cgutils.for_range(builder, operands.lines) as line:
            index = builder.add(builder.mul(loop.index, operands.lines), line.index)
            address = at(builder, operands.ahead, index, 64)
            for tile in range(_TILES):
                simd.emit_prefetch(builder, at(builder, address, I64(tile), operands.ahead_step))
        x = at(builder, operands.x, loop.index, operands.x_stride)
        sums = at(builder, operands.sums, loop.index, SLOTS * _SUMS)
        for tile in range(0, _TILES, tiles):
            for token in range(0, SLOTS, tokens):
                places = [(t, v) for v in range(token, token + tokens) for t in range(tile, tile + tiles)]
                _emit_part(builder, stored, operands, x, sums, places)


def _emit_part(builder: Any, stored: bool, operands: Panel, x: Any, sums: Any, places: list[tuple[int, int]]) -> None:
    """The sums of ``places``, (tile, token) pairs, of one group of tokens."""
    addresses = {place: builder.add(sums, I64(_SUMS * place[1] + 64 * place[0])) for place in places}
    slots = dict(zip(places, accumulators(builder, len(places)), strict=True))
    for place, slot in slots.items():
        builder.store(simd.emit_load(builder, addresses[place], V16F, 64), slot)
    tiles, tokens = sorted({tile for tile, _ in places}), sorted({token for _, token in places})
    with cgutils.for_range(builder, operands.blocks) as loop:
        block = at(builder, operands.panel, loop.index, PANEL_BLOCK)
        here = at(builder, x, loop.index, SLOTS_BLOCK)

        def load(offset: int, llvm_type: Any, block: Any = block) -> Any:
            return simd.emit_load(builder, builder.add(block, I64(offset)), llvm_type, 64)

        offsets = {token: emit_slot(builder, here, token, 1, I32) for token in tokens}
        zeros: dict[int, Any] = dict.fromkeys(tiles, UNSIGNED_ZERO - simd.dot_offset(255))
        if stored:
            zeros = {tile: load(_TILES * (_CODES + 64) + 64 * tile, V16I) for tile in tiles}
        dots = {(tile, token): emit_start(builder, offsets[token], zeros[tile]) for tile, token in places}
        for number in range(BLOCK // 4):
            lines = {tile: load(tile * _CODES + 64 * number, V64B) for tile in tiles}
            for token in tokens:
                x4 = simd.emit_bytes4(builder, builder.add(here, I64(token * BLOCK + 4 * number)))
                for tile in tiles:
                    dots[tile, token] = simd.emit_offset_dot(builder, dots[tile, token], lines[tile], x4)
        scales = {tile: load(_TILES * _CODES + 64 * tile, V16F) for tile in tiles}
        for token in tokens:
            x_scale = emit_slot(builder, here, token, 0, F32)
            for tile in tiles:
                emit_accumulate(builder, slots[tile, token], dots[tile, token], scales[tile], x_scale)
    for place, slot in slots.items():
        simd.emit_store(builder, addresses[place], builder.load(slot), 64)
