"""Inner loop of the integer matrix-vector kernels for 3 to 8 tokens, with 8-bit tensor cores.

A warp computes two tiles. A 128-bit load of lane `4 * g + c` takes quad `g % 4` of tile `g / 4` and columns 8c to 8c+7
of a group of 32, and *is* the A operand of two `mma` of 16 rows × 32 columns: rows `i` and `i + 1` of the quads are
its rows g and g + 8. The order of the columns is free as long as B, the activations, has the same: lane `4 * g + c`
reads columns 8c to 8c+7 of token g. A lane ends with the integer sums of 4 rows and of tokens 2c and 2c+1.

The float sums have the order of `gemv_dot`: a warp takes the groups of the same warp there and keeps a sum for each of
8 neighbours (`here`), which are added like lanes across distances 4, 8 and 16. So each token has the bits that it would
have alone. All 8 would take 64 registers: a warp goes through the columns twice, for 4 of the 8 each time (4-bit codes
from sm_80 on), or four times, for 2 of the 8.
"""

from __future__ import annotations

from typing import Any

from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels import integer_formats
from qwchat.cuda.kernels.activations import pair_reader
from qwchat.cuda.kernels.integer_formats import Arithmetic
from qwchat.cuda.kernels.toolchain import A, F, I, U, cuda, device

TILES_PER_WARP = 2
TOKENS = 8
_NIBBLE_BLOCK_BYTES = 256


def accumulate(fmt: Arithmetic, target: int, shared: bool) -> Any:
    """Return the device function that computes the sums of two tiles.

    Args:
        fmt: arithmetic of the format.
        target: compute capability that the kernel is compiled for.
        shared: whether activations are in shared memory.
    """
    block_bytes, tile_scales = fmt.block_bytes, integer_formats.tile_scales(fmt)
    add_group, per_block = _add_group(fmt, target, shared), fmt.scale_per_block
    passes = 1 if fmt.block_bytes == _NIBBLE_BLOCK_BYTES and target >= 80 else 2
    address = U if shared else A

    @device
    def accumulate(table, x, matrix, tile_of, work, partial):
        """Compute the sums of this warp's tiles and store them; arguments as in `gemv_dot`."""
        codes, scales, zeros, scale_shift, groups = matrix
        x_codes, x_records, code_stride, record_stride, rows = x
        unit, slots, tiles, split = work
        if per_block:
            scale_shift = I(0)
        lane, warp = I(cuda.threadIdx.x & 31), I(cuda.threadIdx.x >> 5)
        row, c = I(lane >> 2), I(lane & 3)
        part = I(warp & I(I(I(1) << split) - 1))
        slot = I(2 * I(warp >> split))
        _, any_exists = tile_of(unit, slot, slots, tiles)
        tile, exists = tile_of(unit, I(slot + (row >> 2)), slots, tiles)
        if not exists:
            tile = I(0)
        weights = (
            codes + A(tile) * A(groups) * A(block_bytes) + A(16 * I(row & 3)),
            *tile_scales(scales, zeros, tile, I(groups >> scale_shift), I(row & 3)),
            scale_shift,
            c,
        )
        last = I(rows - 1)
        even, odd = p.min_i(I(2 * c), last), p.min_i(I(2 * c + 1), last)
        tokens = (
            address(x_codes + address(code_stride) * address(p.min_i(row, last)) + address(8 * c)),
            address(x_records + address(record_stride) * address(even)),
            address(x_records + address(record_stride) * address(odd)),
        )
        step = I(I(8) << split)
        t = _nothing()
        for half in (0, 4):
            u = _nothing()
            for each in range(passes):
                h0, h1, h2, h3 = _nothing(), _nothing(), _nothing(), _nothing()
                group = I(I(8 * part + half) + 2 * each)
                if not any_exists:
                    group = groups
                while group < groups:
                    h0 = add_group(table, weights, tokens, group, groups, h0)
                    h1 = add_group(table, weights, tokens, I(group + 1), groups, h1)
                    if passes == 1:
                        h2 = add_group(table, weights, tokens, I(group + 2), groups, h2)
                        h3 = add_group(table, weights, tokens, I(group + 3), groups, h3)
                    group = I(group + step)
                u = _add(u, _add(h0, h1))
                if passes == 1:
                    u = _add(u, _add(h2, h3))
            t = _add(t, u)
        slot = I(slot + (row >> 2))
        place = I(I(I(I(slot << split) + part) * TOKENS + 2 * c) * 16 + 4 * I(row & 3))
        at = U(partial + U(4) * U(place))
        p.shared_store4f(at, t[0], t[2], t[4], t[6])
        p.shared_store4f(U(at + U(64)), t[1], t[3], t[5], t[7])

    return accumulate


@device
def _nothing():
    return F(0), F(0), F(0), F(0), F(0), F(0), F(0), F(0)


@device
def _add(a, b):
    return (
        F(a[0] + b[0]),
        F(a[1] + b[1]),
        F(a[2] + b[2]),
        F(a[3] + b[3]),
        F(a[4] + b[4]),
        F(a[5] + b[5]),
        F(a[6] + b[6]),
        F(a[7] + b[7]),
    )


def _add_group(fmt: Arithmetic, target: int, shared: bool) -> Any:
    """Return a device function: add the products of a group to the sums of 4 rows × 2 tokens.

    A group that does not exist is the last one with activations of 0, which changes no sum.
    """
    block_bytes, load_fragment, load_scales = fmt.block_bytes, fmt.load_fragment, fmt.load_scales
    fragment0, fragment1, fragment2, fragment3 = fmt.fragment
    scale0, scale1, scale2, scale3 = fmt.scale_of
    sums, term, product = fmt.sums, fmt.term, _product(fmt.signed, target)
    read_pair, read_scale = pair_reader(shared, fmt.look_up), p.shared_load_scale if shared else p.read_scale
    address = U if shared else A

    @device
    def add_group(table, weights, tokens, group, groups, t):
        exists, group = group < groups, p.min_i(group, I(groups - 1))
        codes, scales, zeros, scale_shift, line = weights
        x_codes, first, second = tokens
        words = load_fragment(codes + A(group) * A(block_bytes), line)
        raw = load_scales(scales, zeros, I(group >> scale_shift))
        low, high = read_pair(address(x_codes + address(32) * address(group)))
        scale_a, sum_a = read_scale(address(first + address(8) * address(group)))
        scale_b, sum_b = read_scale(address(second + address(8) * address(group)))
        if not exists:
            low, high, sum_a, sum_b = U(0), U(0), I(0), I(0)
        start_a, correct_a = sums(sum_a)
        start_b, correct_b = sums(sum_b)
        start = start_a, start_b
        a0, b0, a1, b1 = product(fragment0(table, words), fragment1(table, words), low, high, start)
        a2, b2, a3, b3 = product(fragment2(table, words), fragment3(table, words), low, high, start)
        s0, s1, s2, s3 = scale0(raw), scale1(raw), scale2(raw), scale3(raw)
        return (
            term(s0, a0, correct_a, scale_a, t[0]),
            term(s0, b0, correct_b, scale_b, t[1]),
            term(s1, a1, correct_a, scale_a, t[2]),
            term(s1, b1, correct_b, scale_b, t[3]),
            term(s2, a2, correct_a, scale_a, t[4]),
            term(s2, b2, correct_b, scale_b, t[5]),
            term(s3, a3, correct_a, scale_a, t[6]),
            term(s3, b3, correct_b, scale_b, t[7]),
        )

    return add_group


def _product(signed: bool, target: int) -> Any:
    """Return a device function: sums of two rows of each quad and two tokens over a group of 32 columns."""
    if target >= 80:
        mma = p.mma_s8 if signed else p.mma_u8s8

        @device
        def whole_product(first, second, low, high, start):
            s, t = start
            return mma(first[0], second[0], first[1], second[1], low, high, s, t, s, t)

        return whole_product
    half = p.mma_s8_k16 if signed else p.mma_u8s8_k16

    @device
    def product(first, second, low, high, start):
        a, b = half(first[0], low, start[0], start[1])
        a, b = half(first[1], high, a, b)
        c, d = half(second[0], low, start[0], start[1])
        c, d = half(second[1], high, c, d)
        return a, b, c, d

    return product
