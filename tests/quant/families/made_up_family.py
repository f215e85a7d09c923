"""Invented model family without biases, with its own keys and tensor names: one file, like any new family."""

from __future__ import annotations

from typing import Any

from quant.families import Family, Shapes
from quant.json_fields import JsonFields
from quant.model_config import ModelConfig

CONFIG: dict[str, Any] = {
    "model_type": "made-up",
    "d_model": 64,
    "d_inner": 96,
    "n_layers": 9,
    "n_heads": 4,
    "n_groups": 2,
    "vocab": 320,
    "window": 256,
    "norm_epsilon": 1e-6,
    "rope_theta": 10000.0,
    "parallel": False,
}


def _check_supported(fields: JsonFields) -> None:
    if fields.boolean("parallel", False):
        raise fields.invalid("parallel is true; parallel layers are not supported")


def _tensor_shapes(config: ModelConfig) -> Shapes:
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key_value = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: Shapes = {"tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        prefix = f"blocks.{layer}."
        for name, rows in (("q", query), ("k", key_value), ("v", key_value)):
            shapes[f"{prefix}{name}.weight"] = (rows, hidden)
        shapes[f"{prefix}q_norm.weight"] = (config.head_dim,)
        shapes[f"{prefix}mix.weight"] = (hidden, query)
        shapes[f"{prefix}fold.weight"] = (hidden, inner)
    if not config.tie_word_embeddings:
        shapes["logits.weight"] = (config.vocab_size, hidden)
    return shapes


MADE_UP = Family(
    model_type="made-up",
    title="Made-up",
    config_keys={
        "hidden_size": "d_model",
        "intermediate_size": "d_inner",
        "num_layers": "n_layers",
        "num_heads": "n_heads",
        "num_kv_heads": "n_groups",
        "vocab_size": "vocab",
        "max_position_embeddings": "window",
        "rms_norm_eps": "norm_epsilon",
    },
    check_supported=_check_supported,
    tensor_shapes=_tensor_shapes,
    describe_sizes=lambda name, config: f"d_model {config.hidden_size}",
    sensitive_suffixes=("fold.weight",),
    input_kinds={
        "q.weight": "input",
        "k.weight": "input",
        "v.weight": "input",
        "mix.weight": "mixed",
        "fold.weight": "folded",
    },
    derived_suffixes=(".angles",),
    layer_prefix="blocks.",
    embedding_name="tokens.weight",
    head_name="logits.weight",
)
