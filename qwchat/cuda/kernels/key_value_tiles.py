"""Tiles of keys and values in shared memory, for attention in prefill.

A tile has the keys (or values) of some positions as f16, `2 * head_dim` bytes per position, in chunks of 16 bytes:
    keys: chunk i of position p lies at i ^ (p % 2 * 4). A lane reads 8 dimensions of one position, and a quarter of a
        warp reads two positions, which then lie in different banks.
    values: chunk i of position p lies at i ^ (p % 8), so that `ldmatrix` reads 8 positions without bank conflicts.
Positions beyond the last repeat it: their weights are 0, but 0 times what was never written may be NaN.

The threads of a block copy tiles in one of three ways: asynchronously (f16, from sm_80), through registers (f16), or
through registers and decoded (8 bits).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.toolchain import A, I, U, device

TILE_BYTES = 8192
THREADS = 128

_SIGNS, _K1024, _PAIR_1152 = np.uint32(0x80808080), np.uint32(0x64646464), np.uint32(0x64806480)


def tile_positions(head_dim: int) -> int:
    """Return the positions of a tile."""
    return TILE_BYTES // (2 * head_dim)


@dataclass(frozen=True)
class TileCopy:
    """How a block copies the tiles of keys and values.

    Attributes:
        begin: (keys, [key_scales,] values, [value_scales,] kv_head, capacity, thread, last) -> state.
        start: (state, into, tile) -> raw. Starts copying tile `tile` into the shared address of this thread.
        finish: (into, raw) -> None. Completes the copy.
    """

    begin: Callable[..., Any]
    start: Callable[..., Any]
    finish: Callable[..., Any]


@device
def _key_chunk(position, chunk):
    return U(U(chunk) ^ U(U(U(position) & U(1)) << U(2)))


@device
def _value_chunk(position, chunk):
    return U(U(chunk) ^ U(U(position) & U(7)))


def half_tiles(head_dim: int, asynchronous: bool) -> TileCopy:
    """Return how tiles of an f16 cache are copied: 4 chunks of keys and 4 of values per thread."""
    shift, row_bytes = (4, 256) if head_dim == 128 else (3, 128)
    chunk_mask, positions, step = (1 << shift) - 1, tile_positions(head_dim), THREADS >> shift
    step_bytes = step * row_bytes

    @device
    def begin(keys, values, kv_head, capacity, thread, last):
        """Return addresses in the cache, offsets in the tiles, this thread's first position and the last of all."""
        position, chunk = I(thread >> shift), I(thread & chunk_mask)
        at = A(row_bytes) * A(kv_head) * A(capacity) + A(16 * chunk)
        row = U(row_bytes * position)
        key_to, value_to = U(row + U(16) * _key_chunk(position, chunk)), U(row + U(16) * _value_chunk(position, chunk))
        return keys + at, values + at, key_to, U(value_to + U(TILE_BYTES)), position, last

    @device
    def row(state, tile, index):
        """Return the offset of a position in the cache."""
        return A(row_bytes) * A(p.min_i(I(positions * tile + state[4] + step * index), state[5]))

    @device
    def start_async(state, into, tile):
        for index in range(4):
            at, to = row(state, tile, index), U(into + U(step_bytes * index))
            p.copy_async(U(to + state[2]), state[0] + at)
            p.copy_async(U(to + state[3]), state[1] + at)
        return U(0)

    @device
    def finish_async(state, into, raw):
        return

    @device
    def start(state, into, tile):
        first, second, third, fourth = (
            row(state, tile, 0),
            row(state, tile, 1),
            row(state, tile, 2),
            row(state, tile, 3),
        )
        k, v = state[0], state[1]
        keys = (p.read4(k + first), p.read4(k + second), p.read4(k + third), p.read4(k + fourth))
        return keys, (p.read4(v + first), p.read4(v + second), p.read4(v + third), p.read4(v + fourth))

    @device
    def finish(state, into, raw):
        for index in range(4):
            to, key, value = U(into + U(step_bytes * index)), raw[0][index], raw[1][index]
            p.shared_store4(U(to + state[2]), key[0], key[1], key[2], key[3])
            p.shared_store4(U(to + state[3]), value[0], value[1], value[2], value[3])

    return TileCopy(begin, start_async, finish_async) if asynchronous else TileCopy(begin, start, finish)


@device
def _two_codes(word, selector, scale):
    """Return two codes, times the scale, as a pair of halves."""
    return p.mul_f16x2(p.sub_f16x2(p.prmt(word, _K1024, selector), _PAIR_1152), scale)


@device
def _store_8_codes(to, low, high, scale):
    """Store 8 codes as halves."""
    low, high = U(low ^ _SIGNS), U(high ^ _SIGNS)
    p.shared_store4(
        to,
        _two_codes(low, U(0x4140), scale),
        _two_codes(low, U(0x4342), scale),
        _two_codes(high, U(0x4140), scale),
        _two_codes(high, U(0x4342), scale),
    )


def code_tiles(head_dim: int) -> TileCopy:
    """Return how tiles of an 8-bit cache are copied: 2 times 16 codes of keys and of values per thread."""
    shift = 3 if head_dim == 128 else 2
    unit_mask, positions, step = (1 << shift) - 1, tile_positions(head_dim), THREADS >> shift
    groups, row_bytes = head_dim // 32, 2 * head_dim
    step_bytes = step * row_bytes

    @device
    def begin(keys, key_scales, values, value_scales, kv_head, capacity, thread, last):
        """Return addresses in the cache, offsets in the tiles, this thread's first position and the last of all."""
        position, unit = I(thread >> shift), I(thread & unit_mask)
        head = A(kv_head) * A(capacity)
        at, scale_at = A(head_dim) * head + A(16 * unit), A(2 * groups) * head + A(2 * (unit >> 1))
        row = U(row_bytes * position)
        key_to = U(row + U(16) * _key_chunk(position, 2 * unit))
        value_to = U(U(row + U(16) * _value_chunk(position, 2 * unit)) + U(TILE_BYTES))
        other = U(U(row + U(16) * _value_chunk(position, 2 * unit + 1)) + U(TILE_BYTES))
        return (
            keys + at, values + at, key_scales + scale_at, value_scales + scale_at,
            key_to, value_to, other, position, last,
        )  # fmt: skip

    @device
    def row(state, tile, index):
        """Return a position in the cache."""
        return A(p.min_i(I(positions * tile + state[7] + step * index), state[8]))

    @device
    def read(state, at):
        """Return the codes of keys and of values, and their scales."""
        codes, scales = A(head_dim) * at, A(2 * groups) * at
        key, value = p.read4(state[0] + codes), p.read4(state[1] + codes)
        return key, value, p.read_u16(state[2] + scales), p.read_u16(state[3] + scales)

    @device
    def start(state, into, tile):
        return read(state, row(state, tile, 0)), read(state, row(state, tile, 1))

    @device
    def finish(state, into, raw):
        for index in range(2):
            to, key, value = U(into + U(step_bytes * index)), raw[index][0], raw[index][1]
            key_scale, value_scale = U(raw[index][2] * U(0x10001)), U(raw[index][3] * U(0x10001))
            _store_8_codes(U(to + state[4]), key[0], key[1], key_scale)
            _store_8_codes(U(U(to + state[4]) + U(16)), key[2], key[3], key_scale)
            _store_8_codes(U(to + state[5]), value[0], value[1], value_scale)
            _store_8_codes(U(to + state[6]), value[2], value[3], value_scale)

    return TileCopy(begin, start, finish)
