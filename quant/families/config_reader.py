"""config.json, read by type: a key has the right type, an explicit default, or is refused.

The class defaults of other libraries describe no real model, so a missing shape is an error here.
"""

from __future__ import annotations

import math

from quant.families.family import Family
from quant.json_fields import Values, shown
from quant.model_config import ModelConfig, YarnScaling

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


def read_numbers(read: Values, family: Family) -> ModelConfig:
    """Read the numbers of a model of `family`. Raises the error of `read` for what is wrong or unsupported."""
    family.refuse(read)
    if read.values.get("quantization_config") is not None:
        raise read.fail("the checkpoint is already quantised (quantization_config); give the original one")
    keys = family.keys
    hidden_size, num_heads, num_kv_heads, head_dim = _read_heads(read, family)
    max_positions = read.integer(keys["max_position_embeddings"], 1, _MAX_DIMENSION)
    rope_theta, rope_scaling = _read_rope(read, max_positions)
    config = ModelConfig(
        model_type=family.model_type,
        hidden_size=hidden_size,
        intermediate_size=read.integer(keys["intermediate_size"], 1, _MAX_DIMENSION),
        num_layers=read.integer(keys["num_layers"], 1, _MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=read.integer(keys["vocab_size"], 1, _MAX_DIMENSION),
        max_position_embeddings=max_positions,
        rms_norm_eps=read.number(keys["rms_norm_eps"], _LEAST_EPS, _MOST_EPS),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tie_word_embeddings=read.boolean("tie_word_embeddings", False),
        bos_token_id=next(iter(read.token_ids("bos_token_id")), None),
        eos_token_ids=read.token_ids("eos_token_id"),
        torch_dtype=read.text("dtype", read.text("torch_dtype", None)),
    )
    parameters = sum(math.prod(shape) for shape in family.tensors(config).values())
    if parameters > _MAX_PARAMETERS:
        raise read.fail(f"its sizes make a model of {parameters:,} weights, expected at most {_MAX_PARAMETERS:,}")
    return config


def _read_heads(read: Values, family: Family) -> tuple[int, int, int, int]:
    """Return hidden_size, num_heads, num_kv_heads and head_dim, which fit each other."""
    hidden, heads, kv_heads = (family.keys[field] for field in ("hidden_size", "num_heads", "num_kv_heads"))
    hidden_size = read.integer(hidden, 1, _MAX_DIMENSION)
    num_heads = read.integer(heads, 1, _MAX_HEADS)
    num_kv_heads = read.integer(kv_heads, 1, _MAX_HEADS)
    if read.values.get("head_dim") is None and hidden_size % num_heads:
        raise read.fail(f"{hidden} {hidden_size} is not a multiple of {heads} {num_heads}")
    head_dim = read.integer("head_dim", 1, _MAX_HEAD_DIM, hidden_size // num_heads)
    if num_heads % num_kv_heads:
        raise read.fail(f"{heads} {num_heads} is not a multiple of {kv_heads} {num_kv_heads}")
    if head_dim % 2:
        raise read.fail(f"head_dim {head_dim} is odd; rotary embedding needs pairs")
    return hidden_size, num_heads, num_kv_heads, head_dim


def _read_rope(read: Values, max_positions: int) -> tuple[float, YarnScaling | None]:
    """Return rope_theta and scaling, from `rope_parameters` (newer files) or `rope_scaling` plus `rope_theta`."""
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
    """Return the explicit value, or DeepSeek's ratio of two mscales, or the YaRN paper's 0.1 ln(factor) + 1."""
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
