"""Qwen2 and Qwen2.5: grouped-query attention with biases on q, k and v, SwiGLU, RMSNorm, RoPE."""

from __future__ import annotations

from quant.families.family import Family, Shapes
from quant.json_fields import JsonFields, short_repr
from quant.model_config import ModelConfig

_CONFIG_KEYS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
}


def _check_supported(fields: JsonFields) -> None:
    """Refuse what the forward pass would silently compute wrongly."""
    if fields.values.get("hidden_act") != "silu":
        raise fields.invalid(f"hidden_act is {short_repr(fields.values.get('hidden_act'))}; only 'silu' is supported")
    if fields.boolean("use_sliding_window", False):
        raise fields.invalid("use_sliding_window is true; sliding-window attention is not supported")
    layer_types = fields.values.get("layer_types")
    if layer_types is not None and (
        not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types)
    ):
        raise fields.invalid("layer_types asks for attention other than 'full_attention', which is not supported")


def _tensor_shapes(config: ModelConfig) -> Shapes:
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key_value = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: Shapes = {QWEN2.embedding_name: (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        prefix = f"{QWEN2.layer_prefix}{layer}."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        for name, rows in (("q", query), ("k", key_value), ("v", key_value)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows, hidden)
            shapes[f"{prefix}self_attn.{name}_proj.bias"] = (rows,)
        shapes[prefix + "self_attn.o_proj.weight"] = (hidden, query)
        shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
        shapes[prefix + "mlp.gate_proj.weight"] = (inner, hidden)
        shapes[prefix + "mlp.up_proj.weight"] = (inner, hidden)
        shapes[prefix + "mlp.down_proj.weight"] = (hidden, inner)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes[QWEN2.head_name] = (config.vocab_size, hidden)
    return shapes


def _describe_sizes(name: str, config: ModelConfig) -> str:
    hidden = f"hidden_size {config.hidden_size}"
    if ".q_proj." in name or ".o_proj." in name:
        return f"{hidden} and num_attention_heads {config.num_heads} of head_dim {config.head_dim}"
    if ".k_proj." in name or ".v_proj." in name:
        return f"{hidden} and num_key_value_heads {config.num_kv_heads} of head_dim {config.head_dim}"
    if ".mlp." in name:
        return f"{hidden} and intermediate_size {config.intermediate_size}"
    if name in (QWEN2.embedding_name, QWEN2.head_name):
        return f"{hidden} and vocab_size {config.vocab_size}"
    return hidden


QWEN2 = Family(
    model_type="qwen2",
    title="Qwen2",
    config_keys=_CONFIG_KEYS,
    check_supported=_check_supported,
    tensor_shapes=_tensor_shapes,
    describe_sizes=_describe_sizes,
    sensitive_suffixes=("mlp.down_proj.weight", "self_attn.v_proj.weight"),
    derived_suffixes=(".rotary_emb.inv_freq",),
    layer_prefix="model.layers.",
    embedding_name="model.embed_tokens.weight",
    head_name="lm_head.weight",
)
