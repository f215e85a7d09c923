"""Metadata of a GGUF file as the values of a config.json in the Hugging Face form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quant.errors import CheckpointError
from quant.families import FAMILIES
from quant.json_fields import JsonFields, short_repr
from quant.sources.gguf.metadata import Metadata

_MOST = 1 << 24
_DEFAULT_THETA = 10_000.0  # of the file format
_QUANTISATION_VERSION = 2
# (hidden_size, num_hidden_layers) of published models whose theta is not the default of the file format.
_OTHER_THETA = {
    "qwen2": {
        *((896, 24), (1536, 28), (2048, 36), (3584, 28), (5120, 48), (5120, 64), (8192, 80)),
        *((1024, 24), (2048, 24), (2560, 40), (4096, 32), (5120, 40)),  # Qwen1.5
    },
    "qwen3": {(1024, 28), (2048, 28), (2560, 36), (4096, 36), (5120, 40), (5120, 64)},
}

_NEUTRAL_SCALING = {
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
}


def config_values(metadata: Metadata, vocab_size: int, tied: bool, where: str) -> dict[str, Any]:
    """Return the values of config.json.

    `quant.families.parse_config` checks their ranges.

    Args:
        metadata: metadata of the file.
        vocab_size: rows of the embedding.
        tied: whether the file has no tensor for the head.
        where: name of the file for messages.

    Raises:
        CheckpointError: the file is not a model, its architecture is not supported, a key is missing or has the wrong
            type, or the file uses options that are not supported.
    """
    fields = JsonFields(metadata, where, CheckpointError)
    architecture = _architecture(fields)
    keys = _Keys(fields, architecture)
    tokens = metadata.count("tokenizer.ggml.tokens")
    if tokens is not None and tokens > vocab_size:
        raise fields.invalid(f"tokenizer.ggml.tokens has {tokens:,} tokens, but the embedding has {vocab_size:,} rows")
    heads = keys.integer("attention.head_count")
    values: dict[str, Any] = {
        "architectures": [f"{FAMILIES[architecture].title}ForCausalLM"],
        "model_type": architecture,
        "hidden_act": "silu",
        "hidden_size": keys.integer("embedding_length"),
        "intermediate_size": keys.integer("feed_forward_length"),
        "max_position_embeddings": keys.integer("context_length"),
        "num_attention_heads": heads,
        "num_hidden_layers": keys.integer("block_count"),
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": tied,
        "use_sliding_window": False,
        "vocab_size": vocab_size,
    }
    values |= _head_dim(keys, values["hidden_size"], heads)
    values["rope_theta"] = _theta(keys, values["hidden_size"], values["num_hidden_layers"])
    values |= _scaling(keys, values["max_position_embeddings"])
    for name in ("bos_token_id", "eos_token_id"):
        if (ids := fields.token_ids(f"tokenizer.ggml.{name}")) != ():
            values[name] = ids[0]
    return values


class _Keys:
    """Typed access to the keys of one architecture."""

    def __init__(self, fields: JsonFields, architecture: str) -> None:
        self.fields = fields
        self.architecture = architecture

    def name(self, key: str) -> str:
        """Return the full key."""
        return f"{self.architecture}.{key}"

    def has(self, key: str) -> bool:
        """Return whether the file has `key`."""
        return self.name(key) in self.fields.values

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a positive integer, or `default` if it is missing (None: it must be present)."""
        return self.fields.integer(self.name(key), 1, _MOST, default)

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number of at least 0, or `default` if it is missing (None: it must be present)."""
        return self.fields.number(self.name(key), 0.0, 1e30, default)

    def text(self, key: str, default: str) -> str:
        """Return a string, or `default` if it is missing."""
        return self.fields.text(self.name(key), default) or ""


def _architecture(fields: JsonFields) -> str:
    kind = fields.text("general.type", "model")
    if kind != "model":
        raise fields.invalid(f"general.type is {short_repr(kind)}; only files with a whole model are supported")
    architecture = fields.required_text("general.architecture")
    if architecture not in FAMILIES:
        *others, last = map(repr, FAMILIES)
        raise fields.invalid(
            f"general.architecture is {short_repr(architecture)}; only {', '.join(others)} and {last} are supported"
        )
    version = fields.integer("general.quantization_version", 0, _MOST, _QUANTISATION_VERSION)
    if version != _QUANTISATION_VERSION:
        raise fields.invalid(
            f"general.quantization_version is {version}; only {_QUANTISATION_VERSION} is supported: "
            "get a newer file of the model"
        )
    return architecture


def _head_dim(keys: _Keys, hidden_size: int, heads: int) -> Mapping[str, int]:
    """Return head_dim if the file gives it; keys and values must have the same size, and RoPE must turn all of it."""
    sizes = {
        name: keys.integer(name)
        for name in ("attention.key_length", "attention.value_length", "rope.dimension_count")
        if keys.has(name)
    }
    if not sizes:
        # llama.cpp's default, which the family may not have
        return {"head_dim": hidden_size // heads} if hidden_size % heads == 0 else {}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{keys.name(name)} {size}" for name, size in sizes.items())
        raise keys.fields.invalid(f"{listed} must be equal; other sizes are not supported")
    return {"head_dim": next(iter(sizes.values()))}


def _theta(keys: _Keys, hidden_size: int, layers: int) -> float:
    if not keys.has("rope.freq_base") and (hidden_size, layers) in _OTHER_THETA[keys.architecture]:
        raise keys.fields.invalid(
            f"{keys.name('rope.freq_base')} is missing, which means {_DEFAULT_THETA:,.0f}, but published models with "
            f"hidden size {hidden_size} and {layers} layers have another value; get a newer file of the model"
        )
    return keys.number("rope.freq_base", _DEFAULT_THETA)


def _scaling(keys: _Keys, max_positions: int) -> Mapping[str, Any]:
    """Return rope_scaling if the file extends the context with YaRN, as llama.cpp reads its keys."""
    if (linear := keys.number("rope.scale_linear", 1.0)) not in (0, 1):
        raise keys.fields.invalid(f"{keys.name('rope.scale_linear')} is {linear:g}; linear scaling is not supported")
    factor = keys.number("rope.scaling.factor", 0.0) or 1.0  # 0 and a missing factor mean none
    kind = keys.text("rope.scaling.type", "linear")
    if kind == "none" or (kind == "linear" and factor == 1):
        return {}
    if kind != "yarn":
        raise keys.fields.invalid(
            f"{keys.name('rope.scaling.type')} is {short_repr(kind)} with factor {factor:g}; only 'yarn' is supported"
        )
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.integer("rope.scaling.original_context_length", max_positions),
        "beta_fast": keys.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.number("rope.scaling.yarn_beta_slow", 1.0),
    }
    for name, neutral in _NEUTRAL_SCALING.items():
        if keys.number(name, neutral) != neutral:
            raise keys.fields.invalid(f"{keys.name(name)} other than {neutral:g} is not supported")
    return {"rope_scaling": scaling}
