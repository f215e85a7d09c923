"""Importance matrix of llama.cpp: the mean square of each input column, for the matrices of the layers.

As `llama-imatrix` does by default, it leaves out embedding and head.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.rivals.float_pass import FloatPass, Floats, Tensors
from quant.model_config import ModelConfig

GGUF_MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def importance_matrix(config: ModelConfig, tensors: Tensors, windows: Sequence[Sequence[int]]) -> dict[str, Floats]:
    """Return the mean square of each input column (K,) by the name of the matrix in GGUF."""
    each = FloatPass(config, tensors, windows)
    x, found = each.embed(each.ids), {}

    def watch(seen: Floats, name: str) -> None:
        _, _, layer, module = name.removesuffix(".weight").split(".", 3)
        found[f"blk.{layer}.{GGUF_MODULES[module]}.weight"] = np.square(seen).mean(0)

    for layer in range(config.num_layers):
        x = each.watched_layer(x, layer, watch)
    return found
