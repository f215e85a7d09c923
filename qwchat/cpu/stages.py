"""The phases of the forward pass: each is run by all members of the team, between two barriers.

Work is taken in small pieces from the team's ticket.  Nobody waits for a member that holds none: to him the phase may
be over, and the next step may be changing the state, so without a piece he writes nothing but what is his own.
`state` is a layer_records.STATE record, `layer` a layer_records.LAYER.
"""

from __future__ import annotations

from qwchat.cpu.kernels import row_kernels, simd
from qwchat.cpu.kernels.jit import inlined, kernel
from qwchat.cpu.kernels.matmul import activate_pairs, ask_for, is_float, multiply_pairs, pairs
from qwchat.cpu.kernels.records import NORMS_ALONE, SLOTS
from qwchat.cpu.kernels.scheduler import take
from qwchat.cpu.partition import pieces_of, share


@kernel
def embed_tokens(team, member, state):
    """Token ids to rows of the residual stream."""
    columns = state.embed_tokens.columns
    while True:
        row = take(team, member, state.tokens)
        if row < 0:
            return
        token = simd.peek_i64(state.token_ids + row * 8)
        row_kernels.embed(state.embed_tokens, token, state.residual + row * columns * 4)


@kernel
def _norm_row(state, weight, row, x, packed, slot):
    """RMSNorm of a row of the residual stream into row `slot` of `x`, and quantised into `packed`."""
    columns = state.normed.columns
    out = x + slot * columns * 4
    row_kernels.rms_norm(state.residual + row * columns * 4, weight, out, columns, state.epsilon)
    row_kernels.quantise(out, row_kernels.packed_slot(packed, columns, slot), slot, columns)


@kernel
def norm_rows(team, member, state, weight, first):
    """RMSNorm of the residual rows from `first` on, into the rows of `state.normed` from 0 on, also quantised.

    Rows that lie interleaved are one item: two cores must not write to one cache line in turn.
    """
    rows = state.tokens - first
    while True:
        group = take(team, member, (rows + SLOTS - 1) // SLOTS)
        if group < 0:
            return
        for row in range(group * SLOTS, min((group + 1) * SLOTS, rows)):
            _norm_row(state, weight, first + row, state.normed.x, state.normed.packed, row)


@inlined
def norms_alone(tokens):
    """Whether each member norms all rows for itself: for so few it takes less time than to wait for each other."""
    return tokens <= NORMS_ALONE


@kernel
def _normed(member, state, weight, tokens, first):
    """Addresses (x, packed) of the normed rows; here and now for few tokens, else where norm_rows left them."""
    if not norms_alone(tokens):
        return state.normed.x, state.normed.packed
    x = state.own_normed + member * state.own_normed_bytes
    packed = x + NORMS_ALONE * state.normed.columns * 4
    for row in range(tokens):
        _norm_row(state, weight, first + row, x, packed, row)
    return x, packed


@kernel
def _multiply_share(matrix, base, lo, hi, x, packed, tokens, out, accumulate, scratch):
    """The part of items `lo .. hi` that falls into this matrix, whose pairs are items `base` and following."""
    first, last = max(lo - base, 0), min(hi - base, pairs(matrix))
    if first < last:
        multiply_pairs(matrix, x, packed, tokens, first, last, out, matrix.tiles * 64, accumulate, scratch)


@kernel
def project_qkv(team, member, size, state, layer):
    """q, k and v with their biases, from the normed rows."""
    scratch = state.scratch + member * state.scratch_bytes
    tokens = state.tokens
    k = pairs(layer.q_proj)
    v = k + pairs(layer.k_proj)
    items = v + pairs(layer.v_proj)
    pieces = pieces_of(items, size, tokens)
    lo, hi = share(team, member, size, items, pieces, tokens)
    if lo == items:
        return
    ask_for(layer.q_proj, lo)
    x, packed = _normed(member, state, layer.input_layernorm, tokens, 0)
    while lo < items:
        _multiply_share(layer.q_proj, 0, lo, hi, x, packed, tokens, state.query, False, scratch)
        _multiply_share(layer.k_proj, k, lo, hi, x, packed, tokens, state.key, False, scratch)
        _multiply_share(layer.v_proj, v, lo, hi, x, packed, tokens, state.value, False, scratch)
        lo, hi = share(team, member, size, items, pieces, tokens)


@kernel
def project(team, member, size, state, matrix, source, out):
    """`out (tokens, rows) += source @ matrix.T`: back into the residual stream."""
    scratch, tokens = state.scratch + member * state.scratch_bytes, state.tokens
    items = pairs(matrix)
    pieces = pieces_of(items, size, tokens)
    lo, hi = share(team, member, size, items, pieces, tokens)
    while lo < items:
        _multiply_share(matrix, 0, lo, hi, source.x, source.packed, tokens, out, True, scratch)
        lo, hi = share(team, member, size, items, pieces, tokens)


@kernel
def project_gate_up(team, member, size, state, layer):
    """SiLU(gate) * up from the normed rows, quantised for down_proj."""
    scratch = state.scratch + member * state.scratch_bytes
    gate, up, target, tokens = layer.gate_proj, layer.up_proj, state.activated, state.tokens
    keep = is_float(layer.down_proj)
    items = pairs(gate)
    pieces = pieces_of(items, size, tokens)
    lo, hi = share(team, member, size, items, pieces, tokens)
    if lo == items:
        return
    ask_for(gate, lo)
    ask_for(up, lo)
    x, packed = _normed(member, state, layer.post_attention_layernorm, tokens, 0)
    while lo < items:
        activate_pairs(gate, up, x, packed, tokens, lo, hi, target, keep, scratch)
        lo, hi = share(team, member, size, items, pieces, tokens)


@kernel
def project_logits(team, member, size, state):
    """Logits of the tokens from `state.logits_from` on."""
    scratch = state.scratch + member * state.scratch_bytes
    matrix, tokens = state.lm_head, state.tokens - state.logits_from
    items = pairs(matrix)
    pieces = pieces_of(items, size, tokens)
    lo, hi = share(team, member, size, items, pieces, tokens)
    if lo == items:
        return
    ask_for(matrix, lo)
    x, packed = _normed(member, state, state.norm, tokens, state.logits_from)
    while lo < items:
        _multiply_share(matrix, 0, lo, hi, x, packed, tokens, state.logits, False, scratch)
        lo, hi = share(team, member, size, items, pieces, tokens)
