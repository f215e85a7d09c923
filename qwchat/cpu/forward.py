"""The forward pass: one compiled call runs the layers on a chunk of tokens.

`forward` is the whole model from top to bottom. It names no weight format, since each matrix carries its own. All
members of the thread team run it together: between two barriers they share the work of one stage (`qwchat.cpu.stages`,
`qwchat.cpu.attention_stages`).
"""

from __future__ import annotations

from quant.native.backend import types
from qwchat.cpu import attention_stages, stages
from qwchat.cpu.kernels.jit import entry, standalone
from qwchat.cpu.kernels.records import SPLIT_ATTENTION_TOKENS
from qwchat.cpu.kernels.scheduler import announce_end, await_step, barrier, begin_step, end_step, wake
from qwchat.cpu.kernels.simd import record_at
from qwchat.cpu.kernels.thread_team import RUN
from qwchat.cpu.layer_records import LAYER, STATE

_state_at, _layer_at = record_at(STATE), record_at(LAYER)
_LAYER_BYTES = LAYER.itemsize


@standalone(types.void(*[types.int64] * 5))
def forward(team, member, size, states, layers):
    """Run a chunk of `state.tokens` tokens: append to the KV cache, and write the wanted logits to `state.logits`.

    A pass may also begin with the residual stream, run only some of the layers, and end without the head.

    Args:
        team: address of the team's memory.
        member: number of this member.
        size: number of members.
        states: address of one STATE record.
        layers: address of the LAYER records.
    """
    state = _state_at(states)
    if state.from_residual == 0:
        stages.embed_tokens(team, member, state)
        barrier(team, member)
    for index in range(state.first_layer, state.last_layer):
        layer = _layer_at(layers + index * _LAYER_BYTES)
        # Attention: x += o_proj(attention(norm(x)))
        if not stages.norm_per_thread(state.tokens):
            stages.norm_rows(team, member, state, layer.input_layernorm, 0)
            barrier(team, member)
        stages.project_qkv(team, member, size, state, layer)
        barrier(team, member)
        attention_stages.rotate_and_store(team, member, state, layer)
        barrier(team, member)
        attention_stages.attend(team, member, size, state, layer)
        barrier(team, member)
        if state.tokens <= SPLIT_ATTENTION_TOKENS:
            attention_stages.finish_attention(team, member, state, layer)
            barrier(team, member)
        stages.project(team, member, size, state, layer.o_proj, state.attended, state.residual)
        barrier(team, member)
        # MLP: x += down_proj(silu(gate_proj(norm(x))) * up_proj(norm(x)))
        if not stages.norm_per_thread(state.tokens):
            stages.norm_rows(team, member, state, layer.post_attention_layernorm, 0)
            barrier(team, member)
        stages.project_gate_up(team, member, size, state, layer)
        barrier(team, member)
        stages.project(team, member, size, state, layer.down_proj, state.activated, state.residual)
        barrier(team, member)
    if state.logits_from < state.tokens:
        if not stages.norm_per_thread(state.tokens - state.logits_from):
            stages.norm_rows(team, member, state, state.norm, state.logits_from)
            barrier(team, member)
        stages.project_logits(team, member, size, state)
        barrier(team, member)


@standalone(types.void(*[types.int64] * 4))
def lead(team, size, states, layers):
    """Run one step as member 0; the arguments are as for `forward`."""
    begin_step(team)
    forward(team, 0, size, states, layers)
    end_step(team)


@standalone(types.int64(*[types.int64] * 5))
def serve(team, member, size, states, layers):
    """Take part in steps until none has come for a while (return PARK) or the team ends (return STOP).

    The arguments are as for `forward`.
    """
    while True:
        outcome = await_step(team, member)
        if outcome != RUN:
            return outcome
        forward(team, member, size, states, layers)


entry(wake, types.int64(*[types.int64] * 3))
entry(announce_end, types.void(types.int64))
