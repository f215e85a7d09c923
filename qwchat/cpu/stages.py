"""The stages of the forward pass: each is run by all members of the team, between two barriers.

Work is taken in small ranges from the team's ticket.  Nobody waits for a member that holds none: to him the stage may
be over, and the next step may be changing the state, so without a piece he writes nothing but what is his own.
`state` is a layer_records.STATE record, `layer` a layer_records.LAYER.
"""

from __future__ import annotations

from qwchat.cpu.kernels import row_kernels, simd
from qwchat.cpu.kernels.jit import inlined, kernel
from qwchat.cpu.kernels.matmul import activate_pairs, is_float, multiply_pairs, pair_count, prefetch_pair
from qwchat.cpu.kernels.records import NORM_PER_THREAD_TOKENS, TOKEN_LANES
from qwchat.cpu.kernels.scheduler import claim
from qwchat.cpu.partition import claim_range, range_count


@kernel
def embed_tokens(team, member, state):
    """Token ids to rows of the residual stream."""
    columns = state.embed_tokens.columns
    while True:
        row = claim(team, member, state.tokens)
        if row < 0:
            return
        token = simd.peek_i64(state.token_ids + row * 8)
        row_kernels.embed(state.embed_tokens, token, state.residual + row * columns * 4)


@kernel
def _norm_row(state, weight, row, x, packed, target_row):
    """RMSNorm of a row of the residual stream into row `target_row` of `x`, and quantised into `packed`."""
    columns = state.normed.columns
    out = x + target_row * columns * 4
    row_kernels.rms_norm(state.residual + row * columns * 4, weight, out, columns, state.epsilon)
    row_kernels.quantise(out, row_kernels.packed_address(packed, columns, target_row), target_row, columns)


@kernel
def norm_rows(team, member, state, weight, first):
    """RMSNorm of the residual rows from `first` on, into the rows of `state.normed` from 0 on, also quantised.

    Rows that lie interleaved are one item: two cores must not write to one cache line in turn.
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
    """Whether each member norms all rows for itself: for so few it takes less time than to wait for each other."""
    return tokens <= NORM_PER_THREAD_TOKENS


@kernel
def _normed_rows(member, state, weight, tokens, first):
    """Addresses (x, packed) of the normed rows; here and now for few tokens, else where norm_rows left them."""
    if not norm_per_thread(tokens):
        return state.normed.x, state.normed.packed
    x = state.thread_normed + member * state.thread_normed_bytes
    packed = x + NORM_PER_THREAD_TOKENS * state.normed.columns * 4
    for row in range(tokens):
        _norm_row(state, weight, first + row, x, packed, row)
    return x, packed


@kernel
def _multiply_range(matrix, base, begin, end, x, packed, tokens, out, accumulate, scratch):
    """The part of items `begin .. end` that falls into this matrix, whose pairs are items `base` and following."""
    first, last = max(begin - base, 0), min(end - base, pair_count(matrix))
    if first < last:
        multiply_pairs(matrix, x, packed, tokens, first, last, out, matrix.tiles * 64, accumulate, scratch)


@kernel
def project_qkv(team, member, size, state, layer):
    """q, k and v with their biases, from the normed rows."""
    scratch = state.scratch + member * state.scratch_bytes
    tokens = state.tokens
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
        _multiply_range(layer.q_proj, 0, begin, end, x, packed, tokens, state.query, False, scratch)
        _multiply_range(layer.k_proj, k, begin, end, x, packed, tokens, state.key, False, scratch)
        _multiply_range(layer.v_proj, v, begin, end, x, packed, tokens, state.value, False, scratch)
        begin, end = claim_range(team, member, size, items, ranges, tokens)


@kernel
def project(team, member, size, state, matrix, source, out):
    """`out (tokens, rows) += source @ matrix.T`: back into the residual stream."""
    scratch, tokens = state.scratch + member * state.scratch_bytes, state.tokens
    items = pair_count(matrix)
    ranges = range_count(items, size, tokens)
    begin, end = claim_range(team, member, size, items, ranges, tokens)
    while begin < items:
        _multiply_range(matrix, 0, begin, end, source.x, source.packed, tokens, out, True, scratch)
        begin, end = claim_range(team, member, size, items, ranges, tokens)


@kernel
def project_gate_up(team, member, size, state, layer):
    """SiLU(gate) * up from the normed rows, quantised for down_proj."""
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
    """Logits of the tokens from `state.logits_from` on."""
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
        _multiply_range(matrix, 0, begin, end, x, packed, tokens, state.logits, False, scratch)
        begin, end = claim_range(team, member, size, items, ranges, tokens)
