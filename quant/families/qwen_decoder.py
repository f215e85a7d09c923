"""The decoder that Qwen2 and Qwen3 share: grouped-query attention, SwiGLU, RMSNorm, RoPE, and its tensor names."""

from __future__ import annotations

from quant.families.family import Shapes
from quant.json_fields import JsonFields, short_repr
from quant.model_config import ModelConfig

CONFIG_KEYS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
}
LAYER_PREFIX = "model.layers."
EMBEDDING_NAME = "model.embed_tokens.weight"
HEAD_NAME = "lm_head.weight"
SENSITIVE_SUFFIXES = (
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    "mlp.down_proj.weight",
)
INPUT_KINDS = {
    "self_attn.q_proj.weight": "input",
    "self_attn.k_proj.weight": "input",
    "self_attn.v_proj.weight": "input",
    "self_attn.o_proj.weight": "attention",
    "mlp.gate_proj.weight": "mlp",
    "mlp.up_proj.weight": "mlp",
    "mlp.down_proj.weight": "activation",
}
DERIVED_SUFFIXES = (".rotary_emb.inv_freq",)


def check_supported(fields: JsonFields) -> None:
    """Raise for options that the forward pass would ignore, with wrong results. Raises the error of `fields`."""
    if fields.values.get("hidden_act") != "silu":
        raise fields.invalid(f"hidden_act is {short_repr(fields.values.get('hidden_act'))}; only 'silu' is supported")
    if fields.boolean("use_sliding_window", False):
        raise fields.invalid("use_sliding_window is true; sliding-window attention is not supported")
    layer_types = fields.values.get("layer_types")
    if layer_types is not None and (
        not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types)
    ):
        raise fields.invalid("layer_types has attention other than 'full_attention', which is not supported")


def tensor_shapes(config: ModelConfig, *, biases: bool, head_norms: bool) -> Shapes:
    """Return the shape of each tensor by its name, in module order.

    Args:
        config: sizes of the model.
        biases: whether the projections of queries, keys and values have a bias.
        head_norms: whether each head of queries and keys has an RMSNorm before RoPE, with one weight for all heads.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key_value = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: Shapes = {EMBEDDING_NAME: (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        prefix = f"{LAYER_PREFIX}{layer}."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        for name, rows in (("q", query), ("k", key_value), ("v", key_value)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows, hidden)
            if biases:
                shapes[f"{prefix}self_attn.{name}_proj.bias"] = (rows,)
        if head_norms:
            shapes[prefix + "self_attn.q_norm.weight"] = (config.head_dim,)
            shapes[prefix + "self_attn.k_norm.weight"] = (config.head_dim,)
        shapes[prefix + "self_attn.o_proj.weight"] = (hidden, query)
        shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
        shapes[prefix + "mlp.gate_proj.weight"] = (inner, hidden)
        shapes[prefix + "mlp.up_proj.weight"] = (inner, hidden)
        shapes[prefix + "mlp.down_proj.weight"] = (hidden, inner)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes[HEAD_NAME] = (config.vocab_size, hidden)
    return shapes


def describe_sizes(name: str, config: ModelConfig) -> str:
    """Return the keys and values of config.json that give tensor `name` its shape, for messages."""
    hidden = f"hidden_size {config.hidden_size}"
    if "_norm." in name and ".self_attn." in name:
        return f"head_dim {config.head_dim}"
    if ".q_proj." in name or ".o_proj." in name:
        return f"{hidden} and num_attention_heads {config.num_heads} of head_dim {config.head_dim}"
    if ".k_proj." in name or ".v_proj." in name:
        return f"{hidden} and num_key_value_heads {config.num_kv_heads} of head_dim {config.head_dim}"
    if ".mlp." in name:
        return f"{hidden} and intermediate_size {config.intermediate_size}"
    if name in (EMBEDDING_NAME, HEAD_NAME):
        return f"{hidden} and vocab_size {config.vocab_size}"
    return hidden
