"""The phases of the forward pass: each is run by all members of the team, between two barriers.

Work is taken in small pieces from the team's cursor.  ``state`` is a plan.STATE record, ``layer`` a plan.LAYER.
"""

from __future__ import annotations

from qwchat.kernels import attention, elementwise, simd
from qwchat.kernels.jit import kernel
from qwchat.kernels.matmul import activate_pairs, multiply_pairs, pairs
from qwchat.kernels.records import BLOCK, FEW_TOKENS, SLOTS_BLOCK, SPLIT
from qwchat.kernels.team import take


@kernel
def _share(team, size, items):
    """The next piece of ``items`` as (begin, end), possibly empty; ``begin`` is ``items`` when there is none left.

    A round hands out half of what is left in two pieces for each member: long runs, which memory likes, and at the end
    single items, so that nobody waits long for the last.
    """
    pieces = 2 * size
    number = take(team, 1)
    rounds, piece = number // pieces, number % pieces
    left = items >> rounds if rounds < 63 else 0
    begin, count = items - left, left - (left >> 1)
    return begin + piece * count // pieces, begin + (piece + 1) * count // pieces


@kernel
def embed_tokens(team, state):
    """Token ids to rows of the residual stream."""
    columns = state.embed_tokens.columns
    while True:
        row = take(team, 1)
        if row >= state.tokens:
            return
        token = simd.peek_i64(state.token_ids + row * 8)
        elementwise.embed(state.embed_tokens, token, state.residual + row * columns * 4)


@kernel
def norm_rows(team, state, weight, first):
    """RMSNorm of the residual rows from ``first`` on, into the rows of ``state.normed`` from 0 on, also quantised."""
    target = state.normed
    while True:
        row = take(team, 1)
        if row >= state.tokens - first:
            return
        out = target.x + row * target.columns * 4
        residual = state.residual + (first + row) * target.columns * 4
        elementwise.rms_norm(residual, weight, out, target.columns, state.epsilon)
        elementwise.quantise(out, elementwise.packed_slot(target, row), row, target.columns)


@kernel
def _multiply_share(matrix, base, lo, hi, source, tokens, out, accumulate, scratch):
    """The part of items ``lo .. hi`` that falls into this matrix, whose pairs are items ``base`` and following."""
    first, last = max(lo - base, 0), min(hi - base, pairs(matrix))
    if first < last:
        multiply_pairs(matrix, source, tokens, first, last, out, matrix.tiles * 64, accumulate, scratch)


@kernel
def project_qkv(team, member, size, state, layer):
    """q, k and v with their biases, from the normed rows."""
    scratch = state.scratch + member * state.scratch_bytes
    k = pairs(layer.q_proj)
    v = k + pairs(layer.k_proj)
    items = v + pairs(layer.v_proj)
    lo, hi = _share(team, size, items)
    while lo < items:
        _multiply_share(layer.q_proj, 0, lo, hi, state.normed, state.tokens, state.query, False, scratch)
        _multiply_share(layer.k_proj, k, lo, hi, state.normed, state.tokens, state.key, False, scratch)
        _multiply_share(layer.v_proj, v, lo, hi, state.normed, state.tokens, state.value, False, scratch)
        lo, hi = _share(team, size, items)


@kernel
def project(team, member, size, state, matrix, source, tokens, out, accumulate):
    """``out (tokens, rows) (+)= source[:tokens] @ matrix.T``."""
    scratch = state.scratch + member * state.scratch_bytes
    items = pairs(matrix)
    lo, hi = _share(team, size, items)
    while lo < items:
        _multiply_share(matrix, 0, lo, hi, source, tokens, out, accumulate, scratch)
        lo, hi = _share(team, size, items)


@kernel
def project_gate_up(team, member, size, state, layer):
    """SiLU(gate) * up from the normed rows, quantised for down_proj."""
    scratch = state.scratch + member * state.scratch_bytes
    gate, up, target = layer.gate_proj, layer.up_proj, state.activated
    items = pairs(gate)
    lo, hi = _share(team, size, items)
    while lo < items:
        activate_pairs(gate, up, state.normed, state.tokens, lo, hi, target, scratch)
        lo, hi = _share(team, size, items)


@kernel
def rotate_and_store(team, state, layer):
    """RoPE on queries and keys; keys and values of the chunk into the cache."""
    cache = layer.cache
    head_bytes = cache.head_dim * 4
    query_stride, key_stride = layer.q_proj.tiles * 64, layer.k_proj.tiles * 64
    while True:
        row = take(team, 1)
        if row >= state.tokens:
            return
        position = state.position + row
        cos = state.cos + position * cache.head_dim * 2
        sin = state.sin + position * cache.head_dim * 2
        for head in range(cache.num_heads):
            query = state.query + row * query_stride + head * head_bytes
            attention.rotate(query, cos, sin, cache.head_dim, state.query_scale)
        for head in range(cache.num_kv_heads):
            key = state.key + row * key_stride + head * head_bytes
            attention.rotate(key, cos, sin, cache.head_dim, 1.0)
            attention.store_key(cache, head, position, key)
            attention.store_value(cache, head, position, state.value + row * key_stride + head * head_bytes)


@kernel
def _partial(state, cache, row, split, head):
    item = (row * state.splits + split) * cache.num_heads + head
    return state.partials + item * attention.partial_stride(cache)


@kernel
def attend(team, member, state, layer):
    """Causal attention; with few tokens only up to the partial results of each split (see finish_attention)."""
    cache = layer.cache
    group = cache.num_heads // cache.num_kv_heads
    scores = state.scratch + member * state.scratch_bytes
    few = state.tokens <= FEW_TOKENS
    splits = (state.position + state.tokens - 1) // SPLIT + 1 if few else 1
    items = state.tokens * cache.num_kv_heads * splits
    while True:
        item = take(team, 1)
        if item >= items:
            return
        row, rest = item // (cache.num_kv_heads * splits), item % (cache.num_kv_heads * splits)
        head, limit = rest // splits, state.position + row + 1
        query = state.query + row * layer.q_proj.tiles * 64 + head * group * cache.head_dim * 4
        if few:
            split = rest % splits
            start, stop = split * SPLIT, min(limit, (split + 1) * SPLIT)
            if start < stop:
                partial = _partial(state, cache, row, split, head * group)
                attention.attend_split(cache, query, head, start, stop, scores, partial)
        else:
            _attend_all(state, cache, query, row, head, limit, scores)


@kernel
def _attend_all(state, cache, query, row, kv_head, limit, scores):
    """All splits of one token and KV head in turn, merged as finish_attention merges them."""
    group = cache.num_heads // cache.num_kv_heads
    stride = attention.partial_stride(cache)
    total = scores + 8 * SPLIT * 4
    partial = total + group * stride
    for start in range(0, limit, SPLIT):
        target = total if start == 0 else partial
        stop = min(limit, start + SPLIT)
        attention.attend_split(cache, query, kv_head, start, stop, scores, target)
        if start > 0:
            for head in range(group):
                attention.merge(total + head * stride, partial + head * stride, cache.head_dim)
    for head in range(group):
        _finish_head(state, cache, row, kv_head * group + head, total + head * stride)


@kernel
def _finish_head(state, cache, row, head, total):
    target = state.attended
    dim = cache.head_dim
    out = target.x + row * target.columns * 4 + head * dim * 4
    attention.normalise(total, out, dim)
    packed = elementwise.packed_slot(target, row) + head * dim // BLOCK * SLOTS_BLOCK
    elementwise.quantise(out, packed, row, dim)


@kernel
def finish_attention(team, state, layer):
    """Merges the partial results of a step with few tokens, and quantises."""
    cache = layer.cache
    if state.tokens > FEW_TOKENS:
        return
    while True:
        item = take(team, 1)
        if item >= state.tokens * cache.num_heads:
            return
        row, head = item // cache.num_heads, item % cache.num_heads
        total = _partial(state, cache, row, 0, head)
        for split in range(1, (state.position + row) // SPLIT + 1):
            attention.merge(total, _partial(state, cache, row, split, head), cache.head_dim)
        _finish_head(state, cache, row, head, total)
