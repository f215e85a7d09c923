"""Names of tensors: GGUF's on one side, Hugging Face's on the other, for Qwen2 and Qwen3."""

from __future__ import annotations

_WHOLE_MODEL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_OF_A_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE_MODEL_BACK = {theirs: ours for ours, theirs in _WHOLE_MODEL.items()}
_OF_A_LAYER_BACK = {theirs: ours for ours, theirs in _OF_A_LAYER.items()}


def hugging_face_name(name: str) -> str | None:
    """Return the Hugging Face name of a GGUF tensor, or None if models of these families have no such tensor."""
    return _translate(name, "blk.", "model.layers.", _WHOLE_MODEL, _OF_A_LAYER)


def gguf_name(name: str) -> str | None:
    """Return the GGUF name of a Hugging Face tensor, or None if GGUF has no name for it."""
    return _translate(name, "model.layers.", "blk.", _WHOLE_MODEL_BACK, _OF_A_LAYER_BACK)


def _translate(name: str, prefix: str, new_prefix: str, whole: dict[str, str], layer: dict[str, str]) -> str | None:
    stem, dot, kind = name.rpartition(".")
    if not dot or kind not in ("weight", "bias"):
        return None
    if not stem.startswith(prefix):
        return f"{whole[stem]}.{kind}" if stem in whole else None
    number, _, module = stem.removeprefix(prefix).partition(".")
    if not number.isascii() or not number.isdecimal() or (number[0] == "0" and number != "0") or module not in layer:
        return None
    return f"{new_prefix}{number}.{layer[module]}.{kind}"
