"""How decode attention joins partial results: of the warps of a block, then of the blocks of a KV head.

A partial result of 16 query rows is, for each row, the exponent by which its weights are scaled, the sum of its weights
and head_dim weighted sums. The sums stay in the order in which tensor cores return them: word (tile · 4 + r) of lane
4 · g + c belongs to row g + 8 · (r >> 1) and column 2 · c + (r & 1) of a tile of eight dimensions. Four neighbouring
lanes hold the same row, so that they are one 128-bit access.

In global memory a partial result is 16 · head_dim sums, then 16 pairs (exponent, sum of weights); scratch follows.
"""

from __future__ import annotations

from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.device_functions import hadamard_32, store_quantised, warp_sum
from qwchat.cuda.kernels.toolchain import A, F, I, U, cuda, device

ROWS = 16
WARPS = 8
MAX_SPLITS = 64
_THREADS = 32 * WARPS
_AHEAD = 8  # partial results whose loads are under way at the same time


@device
def partial_floats(head_dim):
    """Return the f32 between partial results: one of them, then a block's scratch for keys and values of 8 tokens."""
    return U(ROWS * (head_dim + 2) + 8 * head_dim)


@device
def block_exponent(states, row):
    """Return the largest exponent of a row over the block's warps; `states`: shared address, see `store_state`."""
    top = p.shared_load1f(U(states + row * U(8)))
    for warp in range(1, WARPS):
        top = p.max_f(top, p.shared_load1f(U(states + U(128 * warp) + row * U(8))))
    return top


@device
def store_state(states, warp, lane, row, shift, weights):
    """Store a warp's exponent and sum of weights of one row for the block: (WARPS, 16) pairs f32.

    `weights`: the lane's part of the sum; the four lanes of a row hold one each.
    """
    weights = weights + p.shuffle_xor_f(weights, U(1))
    weights = weights + p.shuffle_xor_f(weights, U(2))
    if lane & U(3) == U(0):
        p.shared_store2f(U(states + warp * U(128) + row * U(8)), shift, weights)


@device
def quad_row(quad):
    """Return the query row that four neighbouring sums (u32 `quad`) belong to."""
    return U(U(quad & U(7)) + U((quad >> U(1)) & U(8)))


@device
def publish(sums, states, partial, rows, thread, head_dim):
    """Write the block's partial result.

    Args:
        sums: shared address of (WARPS/2, 16 · head_dim) f32, already scaled to the block's exponents.
        states: shared address, see `store_state`.
        partial: global address.
        rows: query rows that exist.
        thread: u32.
        head_dim: 64 or 128.
    """
    quad = thread
    while quad < U(4 * head_dim):
        if I(quad_row(quad)) < rows:
            at = U(quad * U(16))
            a, b, c, d = p.shared_load4f(U(sums + at))
            for part in range(1, WARPS // 2):
                e, f, g, h = p.shared_load4f(U(sums + U(part * 64 * head_dim) + at))
                a, b, c, d = a + e, b + f, c + g, d + h
            p.store4f(partial + A(at), a, b, c, d)
        quad = U(quad + U(_THREADS))
    if I(thread) < rows:
        top, total = block_exponent(states, thread), F(0)
        for warp in range(WARPS):
            shift, weights = p.shared_load2f(U(states + U(128 * warp) + thread * U(8)))
            total = p.fma(p.ex2_approx(shift - top), weights, total)
        p.store2f(partial + A(64 * head_dim) + A(thread) * A(8), top, total)


@device
def split_weights(partials, splits, shared, rows, thread, head_dim):
    """Load the states of the splits, and store the weight of each split and row and its part of the sum of weights.

    Args:
        partials: global address of the partial results of a KV head.
        splits: number of partial results, at most MAX_SPLITS.
        shared: shared address of exponents, sums of weights and factors, each (MAX_SPLITS, 16) f32.
        rows: query rows that exist.
        thread: u32.
        head_dim: 64 or 128.
    """
    size = U(MAX_SPLITS * ROWS * 4)
    row, first = U(thread & U(15)), I(thread >> U(4))
    if I(row) < rows:
        split = first
        while split < splits:
            state = partials + A(U(split) * partial_floats(head_dim)) * A(4) + A(64 * head_dim) + A(row) * A(8)
            exponent, weights = p.read2f(state)
            at = U(shared + U(split) * U(64) + row * U(4))
            p.shared_store1f(at, exponent)
            p.shared_store1f(U(at + size), weights)
            split = I(split + I(16))
    cuda.syncthreads()
    if I(row) < rows:
        top = p.shared_load1f(U(shared + row * U(4)))
        split = I(1)
        while split < splits:
            top = p.max_f(top, p.shared_load1f(U(shared + U(split) * U(64) + row * U(4))))
            split = I(split + I(1))
        split = first
        while split < splits:
            at = U(shared + U(split) * U(64) + row * U(4))
            factor = p.ex2_approx(p.shared_load1f(at) - top)
            p.shared_store1f(U(at + size), p.shared_load1f(U(at + size)) * factor)
            p.shared_store1f(U(at + size + size), factor)
            split = I(split + I(16))
    cuda.syncthreads()


@device
def _add(sums, factor, values):
    return (
        p.fma(factor, values[0], sums[0]),
        p.fma(factor, values[1], sums[1]),
        p.fma(factor, values[2], sums[2]),
        p.fma(factor, values[3], sums[3]),
    )


@device
def _partial_and_factor(address, factors, split, splits, step):
    """Return four sums of a split, and its factor; of the last split with the factor 0 if there is no such split."""
    here = p.min_i(split, I(splits - 1))
    values = p.read4f(address + A(U(here) * step) * A(4))
    factor = p.shared_load1f(U(factors + U(here) * U(64)))
    return values, factor if split < splits else F(0)


@device
def merge_quad(partials, splits, factors, quad, head_dim):
    """Return the weighted sum over the splits, in their order, of four neighbouring sums.

    Args:
        partials: global address of the partial results of a KV head.
        splits: number of partial results.
        factors: shared address of the row's factors, one each 64 bytes.
        quad: which four (u32).
        head_dim: 64 or 128.
    """
    sums = (F(0), F(0), F(0), F(0))
    address, step = partials + A(quad) * A(16), partial_floats(head_dim)
    split = I(0)
    while split < splits:
        v0, f0 = _partial_and_factor(address, factors, split, splits, step)
        v1, f1 = _partial_and_factor(address, factors, I(split + I(1)), splits, step)
        v2, f2 = _partial_and_factor(address, factors, I(split + I(2)), splits, step)
        v3, f3 = _partial_and_factor(address, factors, I(split + I(3)), splits, step)
        v4, f4 = _partial_and_factor(address, factors, I(split + I(4)), splits, step)
        v5, f5 = _partial_and_factor(address, factors, I(split + I(5)), splits, step)
        v6, f6 = _partial_and_factor(address, factors, I(split + I(6)), splits, step)
        v7, f7 = _partial_and_factor(address, factors, I(split + I(7)), splits, step)
        sums = _add(_add(_add(_add(sums, f0, v0), f1, v1), f2, v2), f3, v3)
        sums = _add(_add(_add(_add(sums, f4, v4), f5, v5), f6, v6), f7, v7)
        split = I(split + I(_AHEAD))
    return sums


@device
def row_total(weights, splits, row, lane):
    """Return the sum of a row's weights over the splits; `weights`: shared address, see `split_weights`."""
    total = F(0)
    split = I(lane)
    while split < splits:
        total = total + p.shared_load1f(U(weights + U(split) * U(64) + row * U(4)))
        split = I(split + I(32))
    return warp_sum(total)


@device
def store_row(values, total, undo, outputs, column, lane, head_dim):
    """Divide a row by its sum of weights, undo the transform of an 8-bit cache, and store it.

    Args:
        values: shared address of the row, (head_dim) f32.
        total: sum of weights.
        undo: factor of the transform back, 0 for none.
        outputs: addresses of the token's codes, records and f32; 0 for those that are not wanted.
        column: first column of the head.
        lane: u32.
        head_dim: 64 or 128.
    """
    x8, xs, floats = outputs
    for block in range(0, head_dim, 32):
        value = p.div(p.shared_load1f(U(values + U(U(block) + lane) * U(4))), total)
        if undo != F(0):
            value = hadamard_32(value, lane) * undo
        if x8 != A(0):
            store_quantised(value, x8, xs, U(column + U(block)), lane)
        if floats != A(0):
            p.store1f(floats + A(U(column + U(block)) + lane) * A(4), value)


@device
def row_address(base, token, row_bytes):
    """Return the address of a token's row, or 0 if `base` is 0."""
    return base + A(token) * A(row_bytes) if base != A(0) else A(0)
