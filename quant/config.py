"""config.json of a Qwen2 model, read by type: a key has the right type, an explicit default, or is refused.

The class defaults of other libraries describe no real model, so a missing shape is an error here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant.errors import CheckpointError, QuantError
from quant.files import read_json_object
from quant.values import Values, shown

MAX_CONFIG_BYTES = 1 << 20  # real files have some 700
_MAX_DIMENSION = 1 << 24
_MAX_LAYERS = 1024
_MAX_HEADS = 1024
_MAX_HEAD_DIM = 4096
_MAX_PARAMETERS = 1 << 41
"""Two trillion: below it, every product of sizes fits 64 bits with room to spare."""
_LEAST_EPS, _MOST_EPS = 1e-12, 1.0
_LEAST_THETA, _MOST_THETA = 2.0, 1e12
_LEAST_SCALE, _MOST_SCALE = 1e-3, 1e3
"""Of YaRN's factor, betas and multipliers; published values lie between 0.7 and 64."""


@dataclass(frozen=True)
class YarnScaling:
    """YaRN context extension (arXiv 2309.00071), with every default filled in."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    """Multiplies cos and sin; 0.1 ln(factor) + 1 unless the config says otherwise."""


@dataclass(frozen=True)
class ModelConfig:
    """The numbers of one Qwen2-architecture model."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: YarnScaling | None
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    torch_dtype: str | None

    @classmethod
    def from_folder(cls, path: str | Path, error: type[QuantError] = CheckpointError) -> ModelConfig:
        """Read ``path/config.json``. Raises `error` naming the file and the key."""
        file = Path(path) / "config.json"
        return cls.from_dict(read_json_object(file, error, MAX_CONFIG_BYTES), str(file), error)

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], where: str = "config.json", error: type[QuantError] = CheckpointError
    ) -> ModelConfig:
        """Read a parsed config. `where` names it in messages. Raises `error` for what is wrong or unsupported."""
        read = Values(values, where, error)
        _refuse_unsupported(read)
        hidden_size = read.integer("hidden_size", 1, _MAX_DIMENSION)
        num_heads = read.integer("num_attention_heads", 1, _MAX_HEADS)
        num_kv_heads = read.integer("num_key_value_heads", 1, _MAX_HEADS)
        if values.get("head_dim") is None and hidden_size % num_heads:
            raise read.fail(f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}")
        head_dim = read.integer("head_dim", 1, _MAX_HEAD_DIM, hidden_size // num_heads)
        if num_heads % num_kv_heads:
            raise read.fail(f"num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}")
        if head_dim % 2:
            raise read.fail(f"head_dim {head_dim} is odd; rotary embedding needs pairs")
        max_positions = read.integer("max_position_embeddings", 1, _MAX_DIMENSION)
        rope_theta, rope_scaling = _read_rope(read, max_positions)
        config = cls(
            hidden_size=hidden_size,
            intermediate_size=read.integer("intermediate_size", 1, _MAX_DIMENSION),
            num_layers=read.integer("num_hidden_layers", 1, _MAX_LAYERS),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=read.integer("vocab_size", 1, _MAX_DIMENSION),
            max_position_embeddings=max_positions,
            rms_norm_eps=read.number("rms_norm_eps", _LEAST_EPS, _MOST_EPS),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            tie_word_embeddings=read.boolean("tie_word_embeddings", False),
            bos_token_id=next(iter(read.token_ids("bos_token_id")), None),
            eos_token_ids=read.token_ids("eos_token_id"),
            torch_dtype=read.text("dtype", read.text("torch_dtype", None)),
        )
        if (parameters := parameter_count(config)) > _MAX_PARAMETERS:
            raise read.fail(f"its sizes make a model of {parameters:,} weights, expected at most {_MAX_PARAMETERS:,}")
        return config


def _refuse_unsupported(read: Values) -> None:
    """Refuse what the forward pass would silently compute wrongly."""
    model_type = read.values.get("model_type")
    if model_type != "qwen2":
        raise read.fail(f"model_type is {shown(model_type)}; only 'qwen2' is supported")
    if read.values.get("hidden_act") != "silu":
        raise read.fail(f"hidden_act is {shown(read.values.get('hidden_act'))}; only 'silu' is supported")
    if read.boolean("use_sliding_window", False):
        raise read.fail("use_sliding_window is true; sliding-window attention is not supported")
    layer_types = read.values.get("layer_types")
    if layer_types is not None and (
        not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types)
    ):
        raise read.fail("layer_types asks for attention other than 'full_attention', which is not supported")
    if read.values.get("quantization_config") is not None:
        raise read.fail("the checkpoint is already quantised (quantization_config); give the original one")


def _read_rope(read: Values, max_positions: int) -> tuple[float, YarnScaling | None]:
    """rope_theta and scaling, from `rope_parameters` (newer files) or `rope_scaling` plus `rope_theta`."""
    key = "rope_parameters" if read.values.get("rope_parameters") is not None else "rope_scaling"
    parameters = read.values.get(key)
    if parameters is None:
        return _theta(read), None
    if not isinstance(parameters, dict):
        raise read.fail(f"{key} is {shown(parameters)}, expected an object")
    inner = Values(parameters, f"{read.where}: {key}", read.error)
    theta = _theta(read) if parameters.get("rope_theta") is None else _theta(inner)
    kind = inner.text("rope_type", inner.text("type", "default"))
    if parameters.get("partial_rotary_factor") not in (None, 1.0):
        raise inner.fail("partial_rotary_factor other than 1 is not supported")
    if kind == "default":
        return theta, None
    if kind != "yarn":
        raise inner.fail(f"rope type {shown(kind)} is not supported; only 'yarn' and 'default' are")
    if not inner.boolean("truncate", True):
        raise inner.fail("truncate false is not supported")
    factor = _scale(inner, "factor")
    name = "original_max_position_embeddings"
    original = inner.integer(name, 1, _MAX_DIMENSION, read.integer(name, 1, _MAX_DIMENSION, max_positions))
    beta_fast, beta_slow = _scale(inner, "beta_fast", 32.0), _scale(inner, "beta_slow", 1.0)
    if beta_fast < beta_slow:
        raise inner.fail(f"beta_fast {beta_fast:g} is less than beta_slow {beta_slow:g}")
    return theta, YarnScaling(factor, original, beta_fast, beta_slow, _attention_factor(inner, factor))


def _theta(read: Values) -> float:
    return read.number("rope_theta", _LEAST_THETA, _MOST_THETA)


def _scale(inner: Values, key: str, default: float | None = None) -> float:
    return inner.number(key, _LEAST_SCALE, _MOST_SCALE, default)


def _attention_factor(inner: Values, factor: float) -> float:
    """The explicit value, or DeepSeek's ratio of two mscales, or the YaRN paper's 0.1 ln(factor) + 1."""
    explicit, mscale, mscale_all_dim = (
        inner.optional_number(key, _LEAST_SCALE, _MOST_SCALE)
        for key in ("attention_factor", "mscale", "mscale_all_dim")
    )
    if explicit is not None:
        return explicit

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if mscale is not None and mscale_all_dim is not None:
        return magnitude(mscale) / magnitude(mscale_all_dim)
    return magnitude(1.0)


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model by Hugging Face name, in module order; matrices are (out, in)."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key_value = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
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
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def parameter_count(config: ModelConfig) -> int:
    """Number of weights, a tied head counted once."""
    return sum(math.prod(shape) for shape in expected_tensors(config).values())
