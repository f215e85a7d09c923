"""What the matrix-vector kernels do with their sums: which tiles a block computes, and how outputs are finished.

A *unit* is the work of a block between two barriers: `slots` tiles of 16 rows, each computed by `1 << split` warps that
share its columns. Every warp leaves its sums in shared memory, (slots, warps of the tile, tokens, 16 rows) f32; they
are added in the order of the warps.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.activations import THREADS, WARPS, magnitude, scale_and_inverse
from qwchat.cuda.kernels.toolchain import A, F, I, U, cuda, device

_LOG2_E = np.float32(1.4426950408889634)


@device
def plain_tile(unit, slot, slots, tiles):
    """Return the tile of a slot, and whether it exists."""
    tile = I(I(unit * slots) + slot)
    return tile, tile < tiles


@device
def gate_up_tile(unit, slot, slots, tiles):
    """Return the tile of a slot, and whether it exists; half of the slots are gate tiles, the others their up tiles."""
    half, gates = I(slots >> 1), I(tiles >> 1)
    index, tile = I(I(unit * half) + slot), I(I(unit * half) + slot)
    if slot >= half:
        index = I(index - half)
        tile = I(gates + index)
    return tile, index < gates


@device
def silu_product(gate, up):
    """Return `gate / (1 + exp(-gate)) * up`."""
    return F(p.div(gate, F(F(1) + p.ex2_approx(F(F(-gate) * _LOG2_E)))) * up)


def _tile_sum(tokens: int, has_row_scales: bool) -> Any:
    """Return a device function: the finished sum of one row of a slot and one token, with row scale and bias."""

    @device
    def tile_sum(partial, slot, split, token, row, tile, row_scales, bias):
        total, warp = F(0), I(0)
        at = U(partial + U(4) * U(I(I(I(I(slot << split) * tokens) + token) * 16 + row)))
        while warp < I(I(1) << split):
            total = F(total + p.shared_load1f(at))
            at, warp = U(at + U(64 * tokens)), I(warp + 1)
        where = A(4) * A(I(16 * tile + row))
        if has_row_scales:
            total = F(total * p.load1f(row_scales + where))
        if bias != A(0):
            total = F(total + p.load1f(bias + where))
        return total

    return tile_sum


def store_outputs(tokens: int, has_row_scales: bool) -> Any:
    """Return a device function: store a unit's sums as f32, or add them to what is there.

    Args:
        tokens: tokens that the kernel computes (1, 2 or 8).
        has_row_scales: whether rows have scales.
    """
    tile_sum = _tile_sum(tokens, has_row_scales)
    token_bits = tokens.bit_length() - 1

    @device
    def store(partial, unit, slots, split, tiles, rows, row_scales, bias, target):
        out, stride, accumulate = target
        place = I(cuda.threadIdx.x)
        while place < I(slots * (16 * tokens)):
            row, token, slot = I(place & 15), I(I(place >> 4) & (tokens - 1)), I(place >> (4 + token_bits))
            tile, exists = plain_tile(unit, slot, slots, tiles)
            if exists and token < rows:
                total = tile_sum(partial, slot, split, token, row, tile, row_scales, bias)
                at = out + A(4) * (A(token) * A(stride) + A(I(16 * tile + row)))
                if accumulate != 0:
                    total = F(p.load1f(at) + total)
                p.store1f(at, total)
            place = I(place + THREADS)

    return store


def gate_up_outputs(tokens: int, has_row_scales: bool) -> Any:
    """Return a device function: SiLU of the gate times up, stored as f32, or quantised per 32, or both.

    Args:
        tokens: tokens that the kernel computes (1, 2 or 8).
        has_row_scales: whether rows have scales.
    """
    tile_sum = _tile_sum(tokens, has_row_scales)
    token_bits = tokens.bit_length() - 1

    @device
    def finish(partial, unit, slots, split, tiles, rows, row_scales, bias, target):
        floats, x8, xs = target
        lane, half = I(cuda.threadIdx.x & 31), I(slots >> 1)
        columns, row = I(8 * tiles), I(lane & 15)
        work = I(cuda.threadIdx.x >> 5)
        while work < I(I(half >> 1) << token_bits):
            token, pair = I(work & (tokens - 1)), I(work >> token_bits)
            slot = I(2 * pair + (lane >> 4))
            tile, exists = gate_up_tile(unit, slot, slots, tiles)
            if exists and token < rows:
                other, _ = gate_up_tile(unit, I(slot + half), slots, tiles)
                gate = tile_sum(partial, slot, split, token, row, tile, row_scales, bias)
                up = tile_sum(partial, I(slot + half), split, token, row, other, row_scales, bias)
                value, column = silu_product(gate, up), I(16 * tile + row)
                place = A(token) * A(columns) + A(column)
                if floats != A(0):
                    p.store1f(floats + A(4) * place, value)
                if x8 != A(0):
                    store_quantised(value, lane, x8, xs, place)
            work = I(work + WARPS)

    return finish


@device
def store_quantised(value, lane, codes, records, place):
    """Quantise one column per lane, a group of 32 per warp.

    Args:
        value: this lane's activation.
        lane: this lane.
        codes: address of all codes.
        records: address of all records.
        place: row and column of the value, as an index of the activations.
    """
    bits = magnitude(value)
    for distance in (1, 2, 4, 8, 16):
        bits = p.max_u(bits, p.shuffle_xor(bits, U(distance)))
    scale, inverse = scale_and_inverse(bits)
    # The lowest byte, sign-extended.
    code = I(I(p.round_i(F(value * inverse)) << I(24)) >> I(24))
    total = code
    for distance in (1, 2, 4, 8, 16):
        total = I(total + p.shuffle_xor_i(total, U(distance)))
    p.store_u8(codes + place, U(code))
    if lane == 0:
        p.store_scale(records + A(8) * (place >> A(5)), scale, total)


def first_weights(step_bytes: int, per_warp: int) -> Any:
    """Return a device function: prefetch what a block reads first into the second-level cache.

    That is 4 KB of weights per warp and tile, and row scales and biases of the tiles.

    Args:
        step_bytes: bytes of a tile that a warp reads before the next warp's part begins.
        per_warp: tiles that a warp computes.
    """

    @device
    def prefetch(weights, tile_bytes, row_scales, bias, tile_of, tiles, split):
        slots = I(I(WARPS * per_warp) >> split)
        lane, warp = I(cuda.threadIdx.x & 31), I(cuda.threadIdx.x >> 5)
        part = I(warp & I(I(I(1) << split) - 1))
        at = A(step_bytes) * A(part) + A(128) * A(lane)
        for each in range(per_warp):
            slot = I(I(I(warp >> split) * per_warp) + each)
            tile, exists = tile_of(I(cuda.blockIdx.x), slot, slots, tiles)
            if exists and at < tile_bytes:
                p.prefetch_l2(weights + A(tile) * tile_bytes + at)
            if exists and lane == 0 and part == 0:
                if row_scales != A(0):
                    p.prefetch_l2(row_scales + A(64) * A(tile))
                if bias != A(0):
                    p.prefetch_l2(bias + A(64) * A(tile))

    return prefetch


def run_units(accumulate: Any, tile_of: Any, finish: Any, per_warp: int, tokens: int) -> Any:
    """Return a device function: the block's units of work, one after the other.

    Sums of two consecutive units lie in two buffers, so that one barrier per unit suffices.

    Args:
        accumulate: `table, x, matrix, tile_of, work, partial`: compute the sums of a warp; see `gemv_dot`.
        tile_of: `unit, slot, slots, tiles -> tile, exists`.
        finish: function that `store_outputs` or `gate_up_outputs` returns.
        per_warp: tiles that a warp computes.
        tokens: tokens that the kernel computes.
    """
    all_slots = WARPS * per_warp
    both, one_bytes = 2 * all_slots * tokens * 16, 4 * all_slots * tokens * 16

    @device
    def run(table, x, rows, matrix, row_scales, bias, tiles, split, target):
        partial = p.shared_address(p.address_of(cuda.shared.array(both, F)))
        other = U(partial + U(one_bytes))
        slots = I(I(all_slots) >> split)
        unit = I(cuda.blockIdx.x)
        while I(unit * slots) < tiles:
            accumulate(table, x, matrix, tile_of, (unit, slots, tiles, split), partial)
            cuda.syncthreads()
            finish(partial, unit, slots, split, tiles, rows, row_scales, bias, target)
            partial, other = other, partial
            unit = I(unit + I(cuda.gridDim.x))

    return run
