"""Attention of a decode step: 1 to 8 tokens, from `qkv` to the quantised input of o_proj, in one launch.

`attend_f16_d64`, `attend_f16_d128`, `attend_q8_d64` and `attend_q8_d128`: kind of the KV cache, and head_dim. Each
does, for the tokens of the pass: RMSNorm of queries and keys (families that have it), RoPE, subtraction of the key
offset, append of keys and values to the cache, causal attention, and quantisation. `q8` is the CPU's 8-bit cache:
Hadamard transform of each 32 elements, codes i8 and scales f16, for queries too.

Grid: row_tiles · kv_heads · splits blocks of 256 threads; the split changes fastest. A *query row* is a query head of a
token, token · group + head; a row tile is 16 of them, so one or two tokens of a group of 7 or 8 heads are one tile, and
row_tiles = ceil(tokens · group / 16). A block takes 16 query rows, a KV head, and every `splits`-th tile of 128
positions; a warp takes 16 positions of a tile, with a softmax of its own, without barriers. The block's warps are
joined in shared memory, and the last block of a KV head joins the blocks, in the order of their splits. A good `splits`
is multiprocessors / kv_heads, at most 64.

A row's bits do not depend on how many rows are in the pass: positions go to blocks, warps and products by their number
alone, and what a later token adds is left out by a selection, even if it is not finite. Blocks of a split without any
position leave at once.

Memory: a key and a value are read once by each row tile, by 128-bit loads (64-bit for values of 64 bytes), straight
into the registers that tensor cores take. A warp has 4 KB under way in an 8-bit cache of 128 dimensions and 8 KB in an
f16 one, so a multiprocessor has 32 KB or 64 KB; the next tile is on its way to the second-level cache meanwhile. Per 16
positions a warp spends about 600 issue slots in an 8-bit cache, against some 1,050 that an H200's memory allows at
4.3 TB/s. At depth 32,768 with 33 splits, the last block of a KV head reads 33 partial results of 7 rows (118 KB), about
1 µs. Eight tokens of a group of 7 heads are four row tiles, which read the cache four times, mostly from the
second-level cache.

Parameters:
    step: i32[8]: number of tokens, position of the first one.
    qkv: f32 (tokens, (heads + 2 · kv_heads) · head_dim), before RoPE.
    q_norm, k_norm: f32 (head_dim), or 0 without norms.
    cos, sin: f32 (context, head_dim/2).
    key_offset: f32 (kv_heads, head_dim), or 0.
    keys, values: (kv_heads, capacity, head_dim) f16 or i8.
    key_scales, value_scales: f16 (kv_heads, capacity, head_dim/32), or 0 for f16.
    partials: f32 (row_tiles, kv_heads, splits, 24 · head_dim + 32), scratch.
    arrivals: i32 (row_tiles · kv_heads), zeros; they are zeros again afterwards.
    x8: i8 (tokens, heads · head_dim), written; or 0.
    xs: records {f32 scale, i32 sum of codes} (tokens, heads · head_dim/32), written; or 0 with x8.
    floats: f32 (tokens, heads · head_dim), written; or 0.
    heads, kv_heads, splits, capacity: i32.
    epsilon: f32, of the norms.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.attention_groups import GROUP, THREADS, TILE, device_functions_of
from qwchat.cuda.kernels.attention_merge import (
    MAX_SPLITS,
    WARPS,
    block_exponent,
    merge_quad,
    partial_floats,
    publish,
    quad_row,
    row_address,
    row_total,
    split_weights,
    store_row,
    store_state,
)
from qwchat.cuda.kernels.attention_rows import FRAGMENT_BYTES
from qwchat.cuda.kernels.attention_source import Shape
from qwchat.cuda.kernels.dependent_launch import wait
from qwchat.cuda.kernels.device_functions import last_block
from qwchat.cuda.kernels.toolchain import A, F, I, U, cuda, device
from qwchat.cuda.kernels.unit import Kernel, Unit

_SIGNATURE = "l" * 16 + "iiiif"
_SHAPES = tuple(Shape(kind, head_dim) for kind in ("f16", "q8") for head_dim in (64, 128))


def _fragment_bytes(shape: Shape) -> int:
    """Bytes of the operands made of 16 queries; their factors follow."""
    return FRAGMENT_BYTES * shape.blocks * (2 if shape.kind == "q8" else 4)


def _sums_bytes(shape: Shape) -> int:
    """Bytes of the weighted sums of half of the warps; the warps' states follow."""
    return WARPS // 2 * 64 * shape.head_dim


def _shared_words(shape: Shape) -> int:
    """Words of shared memory, the last four of which hold a flag."""
    joined = 3 * MAX_SPLITS * 64 + 64 * shape.head_dim
    needed = max(_fragment_bytes(shape) + 64 * shape.blocks, _sums_bytes(shape) + WARPS * 128, joined)
    return needed // 4 + 4


@device
def _addresses(codes, scales, row_at, scale_at, first_row):
    """Return where a key or value is written: to the cache (by the first row tile alone), and to the scratch."""
    own = (codes[1] + row_at, scales[1] + scale_at)
    return ((codes[0] + row_at, scales[0] + scale_at) if first_row == I(0) else (A(0), A(0))), own


def _prepare_function(f: SimpleNamespace, shape: Shape) -> Any:
    query, store_key, store_value = f.query, f.store_key, f.store_value
    head_dim, blocks, row_bytes, scale_bytes = shape.head_dim, shape.blocks, shape.row_bytes, shape.scale_bytes
    cleared, scale = (_fragment_bytes(shape) + 64 * blocks) // 4, shape.head_dim**-0.5

    @device
    def prepare(inputs, cache, sizes, place, fragments, steps, thread, epsilon):
        """Write the tile's queries to shared memory, and new keys and values of the block's positions to memory."""
        qkv, q_norm, k_norm, cos, sin, key_offset = inputs
        keys, key_scales, values, value_scales = cache
        heads, kv_heads, splits, tokens, position = sizes
        split, kv_head, first_row, rows = place
        lane, warp, group = U(thread & U(31)), U(thread >> U(5)), I(U(heads) // U(kv_heads))
        width = A(U((heads + 2 * kv_heads) * head_dim)) * A(4)
        word = thread
        while word < U(cleared):
            p.shared_store1(U(fragments + word * U(4)), U(0))
            word = U(word + U(THREADS))
        cuda.syncthreads()
        row = I(warp)
        while row < rows:
            token = I(U(first_row + row) // U(group))
            head = I(kv_head * group + first_row + row - token * group)
            x = qkv + A(U(token)) * width + A(U(head)) * A(4 * head_dim)
            angle = A(U(position + token)) * A(2 * head_dim)
            query(x, q_norm, cos + angle, sin + angle, epsilon, F(scale), U(row), lane, fragments, steps, head_dim)
            row = I(row + WARPS)
        job = I(I(WARPS - 1) - I(warp))  # other warps than those of the first queries
        while job < I(2 * tokens):
            token = I(job >> 1)
            at = I(position + token)
            if I(U(U(at) // U(TILE)) % U(splits)) == split:
                x = qkv + A(U(token)) * width + A(U(heads + kv_head)) * A(4 * head_dim)
                row_at, scale_at = A(U(at)) * A(row_bytes), A(U(at)) * A(scale_bytes)
                if job & 1:
                    x = x + A(U(kv_heads)) * A(4 * head_dim)
                    written = _addresses(values, value_scales, row_at, scale_at, first_row)
                    store_value(x, lane, written[0], written[1], head_dim)
                else:
                    angle = A(U(at)) * A(2 * head_dim)
                    offset = key_offset + A(U(kv_head)) * A(4 * head_dim) if key_offset != A(0) else A(0)
                    written = _addresses(keys, key_scales, row_at, scale_at, first_row)
                    store_key(
                        x, k_norm, cos + angle, sin + angle, offset, epsilon, lane, written[0], written[1], head_dim
                    )
            job = I(job + WARPS)
        cuda.syncthreads()

    return prepare


def _places_function(shape: Shape) -> Any:
    row_bytes, scale_bytes = shape.row_bytes, shape.scale_bytes

    @device
    def scratch_places(cache, scratch, position):
        """Return where keys, key scales, values and value scales of position 0 lie: in the cache, and in scratch.

        The block keeps the keys and values of the pass, of at most 8 tokens, in its scratch too, since the first row
        tile may not have written them to the cache yet.
        """
        keys = scratch - A(U(position)) * A(row_bytes)
        scales = scratch + A(16 * row_bytes) - A(U(position)) * A(scale_bytes)
        return (
            (cache[0], keys),
            (cache[1], scales),
            (cache[2], keys + A(8 * row_bytes)),
            (cache[3], scales + A(8 * scale_bytes)),
        )

    return scratch_places


def _join_warps_function(f: SimpleNamespace, shape: Shape) -> Any:
    scale_sums, store_sums, add_stored_sums = f.scale_sums, f.store_sums, f.add_stored_sums
    part, size = 64 * shape.head_dim, _sums_bytes(shape)

    @device
    def join_warps(state, shared, thread):
        """Add up the weighted sums of the block's warps, which then lie in shared memory in four parts."""
        shift0, shift1, total0, total1, sums = state
        lane, warp = U(thread & U(31)), U(thread >> U(5))
        row, states = U(lane >> U(2)), U(shared + U(size))  # behind the queries
        store_state(states, warp, lane, row, shift0, total0)
        store_state(states, warp, lane, U(row + U(8)), shift1, total1)
        cuda.syncthreads()
        factor0 = p.ex2_approx(shift0 - block_exponent(states, row))
        factor1 = p.ex2_approx(shift1 - block_exponent(states, U(row + U(8))))
        sums = scale_sums(sums, factor0, factor1)
        at = U(shared + U(warp & U(WARPS // 2 - 1)) * U(part) + lane * U(4))
        if warp >= U(WARPS // 2):
            store_sums(sums, at)
        cuda.syncthreads()
        if warp < U(WARPS // 2):
            store_sums(add_stored_sums(sums, at), at)
        cuda.syncthreads()
        return states

    return join_warps


def _finish_function(shape: Shape) -> Any:
    head_dim, columns_apart = shape.head_dim, shape.dimension(0)[0]
    size, undo = MAX_SPLITS * 64, 4.0 if shape.kind == "q8" else 0.0
    eights = shape.kind == "q8"

    @device
    def finish(partials, shared, place, active, x8, xs, floats, thread):
        """Join the splits of a KV head, and quantise the rows."""
        heads, kv_heads, kv_head, first_row, rows = place
        lane, warp, group = U(thread & U(31)), U(thread >> U(5)), I(U(heads) // U(kv_heads))
        split_weights(partials, active, shared, rows, thread, head_dim)
        weights, factors, joined = U(shared + U(size)), U(shared + U(2 * size)), U(shared + U(3 * size))
        quad = thread
        while quad < U(4 * head_dim):
            row = quad_row(quad)
            if I(row) < rows:
                a, b, c, d = merge_quad(partials, active, U(factors + row * U(4)), quad, head_dim)
                tile = U(quad >> U(5))
                first = tile if eights else U(U(tile & U(7)) + U(tile >> U(3)) * U(64))
                column = U(first + U((quad >> U(3)) & U(1)) * U(columns_apart))
                at = U(joined + U(U(row * U(head_dim)) + column) * U(4))
                p.shared_store1f(at, a)
                p.shared_store1f(U(at + U(8 * columns_apart)), b)
                p.shared_store1f(U(at + U(16 * columns_apart)), c)
                p.shared_store1f(U(at + U(24 * columns_apart)), d)
            quad = U(quad + U(THREADS))
        cuda.syncthreads()
        row = warp
        columns = U(heads * head_dim)
        while I(row) < rows:
            token = U(U(first_row + I(row)) // U(group))
            head = U(kv_head * group + first_row + I(row) - I(token) * group)
            total = row_total(weights, active, row, lane)
            codes, records = row_address(x8, token, columns), row_address(xs, token, U(columns >> U(2)))
            outputs = (codes, records, row_address(floats, token, U(columns * U(4))))
            values = U(joined + U(row * U(4 * head_dim)))
            store_row(values, total, F(undo), outputs, U(head * U(head_dim)), lane, head_dim)
            row = U(row + U(WARPS))

    return finish


def _function(shape: Shape, target: int) -> Any:
    """Return the kernel of a shape as a plain Python function."""
    f = device_functions_of(shape, target)
    wait_for_previous, prefetch, cached, own = wait(target), f.prefetch, f.cached, f.own
    prepare, join_warps, finish = _prepare_function(f, shape), _join_warps_function(f, shape), _finish_function(shape)
    scratch_places = _places_function(shape)
    head_dim, row_bytes, scale_bytes = shape.head_dim, shape.row_bytes, shape.scale_bytes
    words, fragment_bytes, overlaps = _shared_words(shape), _fragment_bytes(shape), target >= 90

    def attend(
        step, qkv, q_norm, k_norm, cos, sin, key_offset, keys, key_scales, values, value_scales, partials, arrivals,
        x8, xs, floats, heads, kv_heads, splits, capacity, epsilon,
    ):  # fmt: skip
        shared = p.shared_address(p.address_of(cuda.shared.array(words, dtype=F)))
        thread = U(cuda.threadIdx.x)
        lane, warp, number = U(thread & U(31)), U(thread >> U(5)), U(cuda.blockIdx.x)
        split, number = I(number % U(splits)), U(number // U(splits))
        kv_head, row_tile = I(number % U(kv_heads)), I(number // U(kv_heads))
        first_key = A(U(kv_head)) * A(U(capacity))
        keys, values = keys + first_key * A(row_bytes), values + first_key * A(row_bytes)
        key_scales, value_scales = key_scales + first_key * A(scale_bytes), value_scales + first_key * A(scale_bytes)
        base, stride = I(split * TILE + I(warp) * GROUP), I(splits * TILE)
        if overlaps:
            # Before the wait, `step` may be that of the step before: good enough for a prefetch.
            prefetch(keys, values, base, p.read1i(step + A(4)), lane)
        wait_for_previous()
        tokens, position = p.read1i(step), p.read1i(step + A(4))
        group, first_row, last = I(U(heads) // U(kv_heads)), I(16 * row_tile), I(position + tokens - 1)
        rows = p.min_i(I(16), I(tokens * group - first_row))
        active = p.min_i(splits, I(U(last) // U(TILE)) + I(1))
        if rows <= 0 or split >= active:
            return
        pair = U(row_tile * kv_heads + kv_head)
        partials = partials + A(U(pair * U(splits))) * A(4 * partial_floats(head_dim))
        partial = partials + A(U(split)) * A(4 * partial_floats(head_dim))
        cache, sizes = (keys, key_scales, values, value_scales), (heads, kv_heads, splits, tokens, position)
        places = scratch_places(cache, partial + A(64 * head_dim + 128), position)
        place = (split, kv_head, first_row, rows)
        steps = U(shared + U(fragment_bytes))
        prepare((qkv, q_norm, k_norm, cos, sin, key_offset), places, sizes, place, shared, steps, thread, epsilon)
        base, state = cached(cache, base, stride, position, shared, steps, lane)
        state = own(places, base, stride, position, last, first_row, rows, group, shared, steps, lane, state)
        states = join_warps(state, shared, thread)
        publish(shared, states, partial, rows, thread, head_dim)
        flag = U(shared + U(4 * words - 16))
        if last_block(arrivals + A(pair) * A(4), active, flag, thread):
            finish(partials, shared, (heads, kv_heads, kv_head, first_row, rows), active, x8, xs, floats, thread)

    attend.__name__ = f"attend_{shape.kind}_d{head_dim}"
    return attend


def units(target: int) -> list[Unit]:
    """Return the units of this file: one for each kind of cache and head_dim."""
    kernels = [
        Kernel(_function(shape, target), _SIGNATURE, THREADS, 2 if shape == Shape("f16", 64) else 1)
        for shape in _SHAPES
    ]
    return [Unit(kernel.name, (kernel,)) for kernel in kernels]
