"""Inner loops of the integer matrix-vector kernels for 1 and 2 tokens, with four-way byte dot products (dp4a).

A warp computes a tile of 16 rows. Lane `4 * here + quad` takes 4 rows (`quad`) of a whole group of 32 columns, so each
group's dot products end in one register per row, and scales are applied once. With `w` warps on the tile, warp `k`
takes the groups `8k + here + 8w * step`.

Order of the float sums, for each row and token: each lane adds its groups in order; then lanes are added across
distances 4, 8 and 16 (`here` ^ 1, ^ 2, ^ 4); then the warps, in order. `gemv_mma` adds in the same order.
"""

from __future__ import annotations

from typing import Any

from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels import integer_formats
from qwchat.cuda.kernels.activations import block_reader
from qwchat.cuda.kernels.integer_formats import Arithmetic
from qwchat.cuda.kernels.toolchain import A, F, I, U, cuda, device

TILES_PER_WARP = 1


def accumulate(fmt: Arithmetic, tokens: int, shared: bool) -> Any:
    """Return the device function that computes a tile's sums.

    Args:
        fmt: arithmetic of the format.
        tokens: 1 or 2.
        shared: whether activations are in shared memory.
    """
    block_bytes, scale_bytes, two = fmt.block_bytes, fmt.scale_bytes, tokens == 2
    tile_scales = integer_formats.tile_scales(fmt)
    load_block, load_scales, sums = fmt.load_block, fmt.load_scales, fmt.sums
    read_block, read_scale = block_reader(shared, fmt.look_up), p.shared_load_scale if shared else p.read_scale
    add_rows, per_block = _add_rows(fmt), fmt.scale_per_block
    address = U if shared else A

    @device
    def accumulate(table, x, matrix, tile_of, work, partial):
        """Compute a tile's sums of this warp and store them at `partial`.

        Args:
            table: words of the format's table.
            x: addresses of codes and records, bytes per token of each, number of tokens.
            matrix: addresses of codes, scales and zero points, log2 of blocks per scale, groups of 32 columns.
            tile_of: number of the tile of a slot.
            work: (unit, slots, tiles, split); see `gemv_outputs`.
            partial: shared address of the sums.
        """
        codes, scales, zeros, scale_shift, groups = matrix
        x_codes, x_records, code_stride, record_stride, _ = x
        unit, slots, tiles, split = work
        if per_block:
            scale_shift = I(0)
        lane, warp = I(cuda.threadIdx.x & 31), I(cuda.threadIdx.x >> 5)
        quad = I(lane & 3)
        tile, exists = tile_of(unit, I(warp >> split), slots, tiles)
        here, part = I(lane >> 2), I(warp & I(I(I(1) << split) - 1))
        # Bases have the lane's offset, and `chunk` counts groups for the whole warp.
        chunk, end = I(8 * part), I(groups - here)
        if not exists:
            chunk = groups
        base = codes + A(tile) * A(groups) * A(block_bytes) + A(I(block_bytes * here + 16 * quad))
        scale_base, zero_base = tile_scales(scales, zeros, tile, I(groups >> scale_shift), quad)
        if per_block:
            scale_base += A(scale_bytes) * A(here)
        x_codes, x_records = address(x_codes + address(32 * here)), address(x_records + address(8 * here))
        t = F(0), F(0), F(0), F(0)
        u = F(0), F(0), F(0), F(0)
        while chunk < end:
            words = load_block(base + A(chunk) * A(block_bytes))
            scale_group = chunk
            if not per_block:
                scale_group = I(I(chunk + here) >> scale_shift)
            raw = load_scales(scale_base, zero_base, scale_group)
            at, record = x_codes + address(32) * address(chunk), x_records + address(8) * address(chunk)
            x_scale, x_sum = read_scale(address(record))
            t = add_rows(table, words, raw, read_block(address(at)), x_scale, sums(x_sum), t)
            if two:
                x_scale, x_sum = read_scale(address(record + address(record_stride)))
                x_words = read_block(address(at + address(code_stride)))
                u = add_rows(table, words, raw, x_words, x_scale, sums(x_sum), u)
            chunk = I(chunk + (I(8) << split))
        place = I(warp * (16 * tokens) + 4 * lane)
        _store_sums(U(partial + U(4) * U(place)), lane, t)
        if two:
            _store_sums(U(partial + U(4) * U(I(place + 16))), lane, u)

    return accumulate


@device
def _store_sums(at, lane, totals):
    """Add the sums of the 8 lanes that share rows; lanes 0 to 3 store them."""
    a, b, c, d = totals
    for distance in (4, 8, 16):
        a = F(a + p.shuffle_xor_f(a, U(distance)))
        b = F(b + p.shuffle_xor_f(b, U(distance)))
        c = F(c + p.shuffle_xor_f(c, U(distance)))
        d = F(d + p.shuffle_xor_f(d, U(distance)))
    if lane < 4:
        p.shared_store4f(at, a, b, c, d)


def _add_rows(fmt: Arithmetic) -> Any:
    """Return a device function: add a group's products of 4 rows and one token to 4 sums."""
    operands0, operands1, operands2, operands3 = fmt.operands
    scale0, scale1, scale2, scale3 = fmt.scale_of
    dot, term = fmt.dot, fmt.term

    @device
    def add_rows(table, words, raw, x, x_scale, x_sums, totals):
        start, correction = x_sums
        a, b, c, d = totals
        return (
            term(scale0(raw), dot(operands0(table, words), x, start), correction, x_scale, a),
            term(scale1(raw), dot(operands1(table, words), x, start), correction, x_scale, b),
            term(scale2(raw), dot(operands2(table, words), x, start), correction, x_scale, c),
            term(scale3(raw), dot(operands3(table, words), x, start), correction, x_scale, d),
        )

    return add_rows
