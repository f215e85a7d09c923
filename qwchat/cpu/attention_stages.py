"""Stages of attention: rotate and store, attend, merge. Every member of the team runs each of them.

In a short step an item is (KV head, split of positions), so that a single token keeps all members busy; the partial
results are merged in a stage of its own. In a longer step an item is (KV head, block of tokens), which merges its
splits as it goes. Both merge the same partial results in the same order, so the result is the same.
"""

from __future__ import annotations

from qwchat.cpu.kernels import attention, row_kernels
from qwchat.cpu.kernels.jit import inlined, kernel
from qwchat.cpu.kernels.records import (
    ATTENTION_ITEM_TOKENS,
    ATTENTION_ROWS,
    ATTENTION_SCRATCH_BYTES,
    BLOCK,
    PACKED_BLOCK_BYTES,
    SPLIT_ATTENTION_TOKENS,
    SPLIT_POSITIONS,
)
from qwchat.cpu.kernels.scheduler import claim
from qwchat.cpu.partition import claim_range, range_count


@inlined
def _group(cache):
    """Return the number of query heads that share a KV head."""
    return cache.num_heads // cache.num_kv_heads


@kernel
def rotate_and_store(team, member, state, layer):
    """Rotate queries and keys (RoPE), after their norm in families that have one; write keys and values to the cache.

    An item is one KV head of one token, with the query heads of its group.
    """
    cache, queries = layer.cache, state.queries
    head_dim, group, kv_heads = cache.head_dim, _group(cache), cache.num_kv_heads
    query_stride, key_stride = layer.q_proj.tiles * 64, layer.k_proj.tiles * 64
    scratch = state.scratch + member * state.scratch_bytes
    while True:
        item = claim(team, member, state.tokens * kv_heads)
        if item < 0:
            return
        token, kv_head = item // kv_heads, item % kv_heads
        position = state.position + token
        cos = state.cos + position * head_dim * 2
        sin = state.sin + position * head_dim * 2
        for head in range(group):
            query = state.query + token * query_stride + (kv_head * group + head) * head_dim * 4
            if layer.q_norm != 0:
                row_kernels.rms_norm(query, layer.q_norm, query, head_dim, state.epsilon)
            row = token * group + head
            out = queries.x + (kv_head * queries.row_capacity + row) * head_dim * 4
            attention.rotate(query, cos, sin, out, head_dim, state.query_scale)
            attention.store_query(queries, cache.kind, kv_head, row, head_dim)
        offset = token * key_stride + kv_head * head_dim * 4
        key = state.key + offset
        if layer.k_norm != 0:
            row_kernels.rms_norm(key, layer.k_norm, key, head_dim, state.epsilon)
        attention.rotate(key, cos, sin, key, head_dim, 1.0)
        attention.store_key(cache, kv_head, position, key, scratch)
        attention.store_value(cache, kv_head, position, state.value + offset, scratch)


@kernel
def _partial(state, cache, kv_head, split, row):
    """Return the address of a row's partial result for one split."""
    item = (split * cache.num_kv_heads + kv_head) * SPLIT_ATTENTION_TOKENS * _group(cache) + row
    return state.partials + item * attention.partial_stride(cache)


@kernel
def attend(team, member, size, state, layer):
    """Compute causal attention.

    With up to SPLIT_ATTENTION_TOKENS tokens it leaves partial results for each split, which `finish_attention` merges.
    """
    scratch = state.scratch + member * state.scratch_bytes
    if state.tokens <= SPLIT_ATTENTION_TOKENS:
        _attend_splits(team, member, size, state, layer.cache, scratch)
        return
    kv_heads = layer.cache.num_kv_heads
    blocks = (state.tokens - 1) // ATTENTION_ITEM_TOKENS + 1
    while True:
        item = claim(team, member, blocks * kv_heads)
        if item < 0:
            return
        # The last tokens see the most positions: begin with them, so that the long items come first.
        first = (blocks - 1 - item // kv_heads) * ATTENTION_ITEM_TOKENS
        last = min(state.tokens, first + ATTENTION_ITEM_TOKENS)
        _attend_tokens(state, layer.cache, item % kv_heads, first, last, scratch)


@kernel
def _attend_splits(team, member, size, state, cache, scratch):
    """Attend split by split, for a short step.

    Members claim ranges of consecutive splits of a KV head: while the values of one split are summed, the keys of the
    next are prefetched.
    """
    end, rows = state.position + state.tokens, state.tokens * _group(cache)
    splits = (end - 1) // SPLIT_POSITIONS + 1
    items = splits * cache.num_kv_heads
    ranges = range_count(items, size, state.tokens)
    item, last = claim_range(team, member, size, items, ranges, state.tokens)
    while item < items:
        while item < last:
            kv_head, split = item // splits, item % splits
            start, stop = split * SPLIT_POSITIONS, min(end, (split + 1) * SPLIT_POSITIONS)
            for row in range(0, rows, ATTENTION_ROWS):
                partial = _partial(state, cache, kv_head, split, row)
                attention.attend_rows(
                    cache,
                    state.queries,
                    kv_head,
                    row,
                    min(ATTENTION_ROWS, rows - row),
                    state.position,
                    start,
                    stop,
                    row == 0,
                    scratch,
                    partial,
                )
            item += 1
        item, last = claim_range(team, member, size, items, ranges, state.tokens)


@kernel
def _attend_tokens(state, cache, kv_head, first, last, scratch):
    """Attend from the tokens `first` to `last - 1` of one KV head to all splits, merged as in `finish_attention`."""
    group, stride = _group(cache), attention.partial_stride(cache)
    rows, end = (last - first) * group, state.position + last
    partial = scratch + ATTENTION_SCRATCH_BYTES
    totals = partial + ATTENTION_ROWS * stride
    for start in range(0, end, SPLIT_POSITIONS):
        stop = min(end, start + SPLIT_POSITIONS)
        for row in range(0, rows, ATTENTION_ROWS):
            target = totals + row * stride if start == 0 else partial
            count = min(ATTENTION_ROWS, rows - row)
            attention.attend_rows(
                cache,
                state.queries,
                kv_head,
                first * group + row,
                count,
                state.position,
                start,
                stop,
                row == 0,
                scratch,
                target,
            )
            if start > 0:
                for index in range(count):
                    attention.merge(totals + (row + index) * stride, partial + index * stride, cache.head_dim)
    for row in range(rows):
        _finish_row(state, cache, kv_head, first * group + row, totals + row * stride)


@kernel
def _finish_row(state, cache, kv_head, row, total):
    """Divide a row's sums by its weights, and quantise the result for `o_proj`."""
    target, group, dim = state.attended, _group(cache), cache.head_dim
    token, head = row // group, kv_head * group + row % group
    out = target.x + token * target.columns * 4 + head * dim * 4
    attention.normalise(cache, total, out)
    packed = row_kernels.packed_address(target.packed, target.columns, token, target.terms)
    row_kernels.quantise(out, packed + head * dim // BLOCK * PACKED_BLOCK_BYTES, token, dim, target.terms)


@kernel
def finish_attention(team, member, state, layer):
    """Merge the partial results of a short step, and quantise the result for `o_proj`."""
    cache = layer.cache
    rows = state.tokens * _group(cache)
    while True:
        item = claim(team, member, rows * cache.num_kv_heads)
        if item < 0:
            return
        kv_head, row = item // rows, item % rows
        total = _partial(state, cache, kv_head, 0, row)
        for split in range(1, (state.position + row // _group(cache)) // SPLIT_POSITIONS + 1):
            attention.merge(total, _partial(state, cache, kv_head, split, row), cache.head_dim)
        _finish_row(state, cache, kv_head, row, total)
