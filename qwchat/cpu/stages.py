"""Stages of the forward pass, except attention. Every member of the team runs each stage, between two barriers.

Members claim work in small pieces. The team does not wait for a member without work: the stage may already be over, and
the next step may be changing the state. Such a member therefore writes only to its own buffers.

`team`, `member` and `size` are the address of the team's memory, the number of this member and the number of members.
`state` is a `layer_records.STATE` record, `layer` a `layer_records.LAYER`.
"""

from __future__ import annotations

from qwchat.cpu.kernels import row_kernels, simd
from qwchat.cpu.kernels.embedding_rows import embed
from qwchat.cpu.kernels.jit import inlined, kernel
from qwchat.cpu.kernels.matmul import activate_pairs, is_float, multiply_pairs, pair_count, prefetch_pair
from qwchat.cpu.kernels.records import NORM_PER_THREAD_TOKENS, TOKEN_LANES
from qwchat.cpu.kernels.scheduler import claim
from qwchat.cpu.partition import claim_range, range_count


@kernel
def embed_tokens(team, member, state):
    """Write the embeddings of the token ids to the residual stream."""
    columns = state.embed_tokens.columns
    scratch = state.scratch + member * state.scratch_bytes
    while True:
        row = claim(team, member, state.tokens)
        if row < 0:
            return
        token = simd.peek_i64(state.token_ids + row * 8)
        embed(state.embed_tokens, token, state.residual + row * columns * 4, scratch)


@kernel
def _norm_row(state, weight, row, x, packed, target_row):
    """Write RMSNorm of a row of the residual stream to row `target_row` of `x`, and quantised to `packed`."""
    columns = state.normed.columns
    out = x + target_row * columns * 4
    row_kernels.rms_norm(state.residual + row * columns * 4, weight, out, columns, state.epsilon)
    terms = state.normed.terms
    row_kernels.quantise(
        out, row_kernels.packed_address(packed, columns, target_row, terms), target_row, columns, terms
    )


@kernel
def norm_rows(team, member, state, weight, first):
    """Write RMSNorm of the residual rows from `first` on to `state.normed`, from row 0 on, also quantised.

    Tokens whose packed blocks are interleaved are one item, so that no two cores take turns writing to one cache line.
    """
    rows = state.tokens - first
    while True:
        group = claim(team, member, (rows + TOKEN_LANES - 1) // TOKEN_LANES)
        if group < 0:
            return
        for row in range(group * TOKEN_LANES, min((group + 1) * TOKEN_LANES, rows)):
            _norm_row(state, weight, first + row, state.normed.x, state.normed.packed, row)


@inlined
def norm_per_thread(tokens):
    """Return whether each member norms all rows for itself, because that is quicker than a barrier."""
    return tokens <= NORM_PER_THREAD_TOKENS


@kernel
def _normed_rows(member, state, weight, tokens, first):
    """Return the addresses (x, packed) of the normed rows.

    For few tokens this member computes them here; otherwise `norm_rows` has left them in `state.normed`.
    """
    if not norm_per_thread(tokens):
        return state.normed.x, state.normed.packed
    x = state.thread_normed + member * state.thread_normed_bytes
    packed = x + NORM_PER_THREAD_TOKENS * state.normed.columns * 4
    for row in range(tokens):
        _norm_row(state, weight, first + row, x, packed, row)
    return x, packed


@kernel
def _multiply_range(matrix, base, begin, end, x, packed, tokens, terms, out, accumulate, scratch):
    """Multiply the part of the items `begin` to `end - 1` that belongs to this matrix.

    Items are pairs of tiles; those of this matrix are numbered from `base` on.
    """
    first, last = max(begin - base, 0), min(end - base, pair_count(matrix))
    if first < last:
        multiply_pairs(matrix, x, packed, tokens, terms, first, last, out, matrix.tiles * 64, accumulate, scratch)


@kernel
def project_qkv(team, member, size, state, layer):
    """Compute queries, keys and values with their biases, from the normed rows."""
    scratch = state.scratch + member * state.scratch_bytes
    tokens, terms = state.tokens, state.normed.terms
    k = pair_count(layer.q_proj)
    v = k + pair_count(layer.k_proj)
    items = v + pair_count(layer.v_proj)
    ranges = range_count(items, size, tokens)
    begin, end = claim_range(team, member, size, items, ranges, tokens)
    if begin == items:
        return
    prefetch_pair(layer.q_proj, begin)
    x, packed = _normed_rows(member, state, layer.input_layernorm, tokens, 0)
    while begin < items:
        _multiply_range(layer.q_proj, 0, begin, end, x, packed, tokens, terms, state.query, False, scratch)
        _multiply_range(layer.k_proj, k, begin, end, x, packed, tokens, terms, state.key, False, scratch)
        _multiply_range(layer.v_proj, v, begin, end, x, packed, tokens, terms, state.value, False, scratch)
        begin, end = claim_range(team, member, size, items, ranges, tokens)


@kernel
def project(team, member, size, state, matrix, source, out):
    """Compute `out (tokens, rows) += source @ matrix.T`, back into the residual stream."""
    scratch, tokens = state.scratch + member * state.scratch_bytes, state.tokens
    items = pair_count(matrix)
    ranges = range_count(items, size, tokens)
    begin, end = claim_range(team, member, size, items, ranges, tokens)
    while begin < items:
        _multiply_range(matrix, 0, begin, end, source.x, source.packed, tokens, source.terms, out, True, scratch)
        begin, end = claim_range(team, member, size, items, ranges, tokens)


@kernel
def project_gate_up(team, member, size, state, layer):
    """Compute SiLU(gate) * up from the normed rows, quantised for `down_proj`."""
    scratch = state.scratch + member * state.scratch_bytes
    gate, up, target, tokens = layer.gate_proj, layer.up_proj, state.activated, state.tokens
    keep_f32 = is_float(layer.down_proj)
    items = pair_count(gate)
    ranges = range_count(items, size, tokens)
    begin, end = claim_range(team, member, size, items, ranges, tokens)
    if begin == items:
        return
    prefetch_pair(gate, begin)
    prefetch_pair(up, begin)
    x, packed = _normed_rows(member, state, layer.post_attention_layernorm, tokens, 0)
    while begin < items:
        activate_pairs(gate, up, x, packed, tokens, begin, end, target, keep_f32, scratch)
        begin, end = claim_range(team, member, size, items, ranges, tokens)


@kernel
def project_logits(team, member, size, state):
    """Compute the logits of the tokens from `state.logits_from` on."""
    scratch = state.scratch + member * state.scratch_bytes
    matrix, tokens = state.lm_head, state.tokens - state.logits_from
    items = pair_count(matrix)
    ranges = range_count(items, size, tokens)
    begin, end = claim_range(team, member, size, items, ranges, tokens)
    if begin == items:
        return
    prefetch_pair(matrix, begin)
    x, packed = _normed_rows(member, state, state.norm, tokens, state.logits_from)
    while begin < items:
        _multiply_range(matrix, 0, begin, end, x, packed, tokens, state.normed.terms, state.logits, False, scratch)
        begin, end = claim_range(team, member, size, items, ranges, tokens)
