"""Single weights of a matrix of any integer format, for rows that are read one at a time (embeddings).

The functions are assembled from the records of the formats; formats that are read alike share a branch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from quant.formats import IntegerFormat
from quant.formats.format import TILE_ROWS
from quant.formats.integer import NIBBLE_BITS
from qwchat.cpu.kernels import simd
from qwchat.cpu.kernels.format_kinds import INTEGER_FORMATS, has_scale_per_block
from qwchat.cpu.kernels.jit import inlined


def _one_of(kinds: Sequence[int]) -> Any:
    """Return a compiled function that tells whether a kind is one of `kinds`, of which there is at least one."""
    first = kinds[0]
    if len(kinds) == 1:

        @inlined
        def is_first(kind):
            return kind == first

        return is_first
    others = _one_of(kinds[1:])

    @inlined
    def is_one(kind):
        return kind == first or others(kind)

    return is_one


_NIBBLES = [kind for kind, fmt in INTEGER_FORMATS.items() if fmt.stored_bits == NIBBLE_BITS]
_has_nibbles = _one_of(_NIBBLES)


@inlined
def code(matrix, codes, row, column):
    """Return the code of one weight.

    Args:
        matrix: a MATRIX record.
        codes: address of the codes of the weight's tile.
        row: row within the tile, 0 to 15.
        column: column of the matrix.
    """
    if _has_nibbles(matrix.kind):
        byte = np.int32(simd.peek_u8(codes + (column // 8) * 64 + row * 4 + column % 4))
        return (byte >> 4) if column % 8 >= 4 else (byte & 15)
    return np.int32(simd.peek_u8(codes + (column // 4) * 64 + row * 4 + column % 4))


def _group_of(fmt: IntegerFormat) -> Any:
    """Return a compiled function: block -> number of its group."""
    if has_scale_per_block(fmt):
        return inlined(lambda matrix, block: block)
    return inlined(lambda matrix, block: block // matrix.blocks_per_scale)


def _raw_scale_of(fmt: IntegerFormat) -> Any:
    """Return a compiled function: place of a scale -> the byte or f16 number stored there."""
    if fmt.scale == "float16":
        return inlined(lambda scales, place: simd.peek_f16(scales + place * 2))
    if fmt.scale == "int8":
        return inlined(lambda scales, place: np.int32(simd.peek_i8(scales + place)))
    return inlined(lambda scales, place: simd.peek_u8(scales + place))


def _scale_of(fmt: IntegerFormat) -> Any:
    """Return a compiled function: stored number -> scale."""
    return inlined(lambda raw: np.float32(raw >> 1)) if fmt.shift else inlined(lambda raw: np.float32(raw))


def _level_of(fmt: IntegerFormat) -> Any:
    """Return a compiled function: code -> level, less the format's zero point unless tensors store their own."""
    zero = fmt.zero
    if fmt.table is None:
        return inlined(lambda code: code - zero)
    centred = np.array(fmt.table, np.int32) - np.int32(zero)
    return inlined(lambda code: centred[code])


def _correction_of(fmt: IntegerFormat) -> Any:
    """Return a compiled function: what a table bit or a stored zero point adds to the level."""
    zero, shift = fmt.zero, fmt.shift
    if shift:
        return inlined(lambda raw, stored: shift * (raw & 1))
    if fmt.allows_zeros:
        return inlined(lambda raw, stored: zero - np.int32(simd.peek_u8(stored)))
    return inlined(lambda raw, stored: 0)


def _value_of(fmt: IntegerFormat) -> Any:
    """Return `block_value` for one format, as a compiled function."""
    group_of, raw_scale_of, scale_of = _group_of(fmt), _raw_scale_of(fmt), _scale_of(fmt)
    level_of, correction_of = _level_of(fmt), _correction_of(fmt)

    @inlined
    def value(matrix, scales, zeros, row, block, code):
        group = group_of(matrix, block)
        raw = raw_scale_of(scales, group * TILE_ROWS + row)
        level = level_of(code) + correction_of(raw, zeros + group * matrix.zero_step + row)
        return scale_of(raw) * np.float32(level)

    return value


def _alike(fmt: IntegerFormat) -> tuple[Any, ...]:
    """Return a key that is equal for formats which share a branch."""
    zero = None if fmt.allows_zeros else fmt.zero
    return fmt.scale, fmt.table, fmt.shift, zero, has_scale_per_block(fmt)


def _choice(branches: Sequence[tuple[Sequence[int], IntegerFormat]]) -> Callable[..., Any]:
    """Return `block_value` for the kinds of `branches`, as a compiled function; the last branch needs no test."""
    (kinds, fmt), *others = branches
    value = _value_of(fmt)
    if not others:
        return value
    applies, rest = _one_of(kinds), _choice(others)

    @inlined
    def choice(matrix, scales, zeros, row, block, code):
        if applies(matrix.kind):
            return value(matrix, scales, zeros, row, block, code)
        return rest(matrix, scales, zeros, row, block, code)

    return choice


def _branches() -> list[tuple[list[int], IntegerFormat]]:
    """Return the kinds that share a branch, each time with one of their formats."""
    found: dict[tuple[Any, ...], tuple[list[int], IntegerFormat]] = {}
    for kind, fmt in INTEGER_FORMATS.items():
        found.setdefault(_alike(fmt), ([], fmt))[0].append(kind)
    return list(found.values())


block_value = _choice(_branches())
"""`block_value(matrix, scales, zeros, row, block, code)`: the weight that a code stands for, without its row scale.

`scales` and `zeros` are addresses of the tile's parts, `row` is the row within the tile, and `block` is column // 32.
"""
