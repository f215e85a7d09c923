"""The forward pass: one compiled call runs all layers for a chunk of tokens.

``forward`` is the whole model, top to bottom.  It names no weight format: a matrix carries its own.
Between two barriers the members of the team share a phase; see :mod:`qwchat.model.phases`.
"""

from __future__ import annotations

import numba

from qwchat.kernels.jit import is_compiled, kernel, mark_compiled
from qwchat.kernels.records import FEW_TOKENS
from qwchat.kernels.team import announce_end, await_step, barrier, begin_step, end_step, rouse
from qwchat.kernels.threads import RUN, Program
from qwchat.model import attention_phases, phases
from qwchat.model.plan import LAYER, STATE


@kernel
def forward(team, member, size, states, layers):
    """Runs ``states[0].tokens`` tokens; appends to the cache and leaves the wanted logits in ``state.logits``."""
    state = states[0]
    phases.embed_tokens(team, member, state)
    barrier(team, member)
    for index in range(len(layers)):
        layer = layers[index]
        # Attention: x += o_proj(attention(norm(x)))
        if not phases.norms_alone(state.tokens):
            phases.norm_rows(team, member, state, layer.input_layernorm, 0)
            barrier(team, member)
        phases.project_qkv(team, member, size, state, layer)
        barrier(team, member)
        attention_phases.rotate_and_store(team, member, state, layer)
        barrier(team, member)
        attention_phases.attend(team, member, state, layer)
        barrier(team, member)
        if state.tokens <= FEW_TOKENS:
            attention_phases.finish_attention(team, member, state, layer)
            barrier(team, member)
        phases.project(team, member, size, state, layer.o_proj, state.attended, state.residual)
        barrier(team, member)
        # MLP: x += down_proj(silu(gate_proj(norm(x))) * up_proj(norm(x)))
        if not phases.norms_alone(state.tokens):
            phases.norm_rows(team, member, state, layer.post_attention_layernorm, 0)
            barrier(team, member)
        phases.project_gate_up(team, member, size, state, layer)
        barrier(team, member)
        phases.project(team, member, size, state, layer.down_proj, state.activated, state.residual)
        barrier(team, member)
    if state.logits_from < state.tokens:
        if not phases.norms_alone(state.tokens - state.logits_from):
            phases.norm_rows(team, member, state, state.norm, state.logits_from)
            barrier(team, member)
        phases.project_logits(team, member, size, state)
        barrier(team, member)


@kernel
def lead(team, size, states, layers):
    """One step as member 0."""
    begin_step(team)
    forward(team, 0, size, states, layers)
    end_step(team)


@kernel
def serve(team, member, size, states, layers):
    """Takes part in steps until there is none for a while (PARK) or never again (STOP)."""
    while True:
        outcome = await_step(team, member)
        if outcome != RUN:
            return outcome
        forward(team, member, size, states, layers)


def program() -> Program:
    """The compiled forward pass; it takes the arrays of STATE and LAYER records as its arguments."""
    if not is_compiled():
        records = tuple(numba.from_dtype(dtype)[::1] for dtype in (STATE, LAYER))
        lead.compile((numba.int64, numba.int64, *records))
        serve.compile((numba.int64, numba.int64, numba.int64, *records))
        mark_compiled()
    return Program(lead, serve, rouse, announce_end)
