"""Read config.json: every key has the right type and range, has an explicit default, or is refused.

A missing size is an error. The class defaults of other libraries do not describe any published model.
"""

from __future__ import annotations

import math

from quant.families.family import Family
from quant.json_fields import JsonFields, short_repr
from quant.model_config import ModelConfig, YarnScaling

_MAX_DIMENSION = 1 << 24
_MAX_LAYERS = 1024
_MAX_HEADS = 1024
_MAX_HEAD_DIM = 4096
_MAX_PARAMETERS = 1 << 41
"""Two trillion. Below it, every product of sizes fits easily into 64 bits."""
_LEAST_EPS, _MOST_EPS = 1e-12, 1.0
_LEAST_THETA, _MOST_THETA = 2.0, 1e12
_LEAST_SCALE, _MOST_SCALE = 1e-3, 1e3
"""Range of YaRN's factor, betas and multipliers. Published values lie between 0.7 and 64."""


def read_fields(fields: JsonFields, family: Family) -> ModelConfig:
    """Return the hyperparameters of a model of `family`.

    Raises the error of `fields` for invalid or unsupported values.
    """
    family.check_supported(fields)
    if fields.values.get("quantization_config") is not None:
        raise fields.invalid("the checkpoint is already quantised (quantization_config); give the original checkpoint")
    config_keys = family.config_keys
    hidden_size, num_heads, num_kv_heads, head_dim = _read_heads(fields, family)
    max_positions = fields.integer(config_keys["max_position_embeddings"], 1, _MAX_DIMENSION)
    rope_theta, rope_scaling = _read_rope(fields, max_positions)
    max_positions = _within_first_chunk(fields, max_positions)
    config = ModelConfig(
        model_type=family.model_type,
        hidden_size=hidden_size,
        intermediate_size=fields.integer(config_keys["intermediate_size"], 1, _MAX_DIMENSION),
        num_layers=fields.integer(config_keys["num_layers"], 1, _MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=fields.integer(config_keys["vocab_size"], 1, _MAX_DIMENSION),
        max_position_embeddings=max_positions,
        rms_norm_eps=fields.number(config_keys["rms_norm_eps"], _LEAST_EPS, _MOST_EPS),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
        bos_token_id=next(iter(fields.token_ids("bos_token_id")), None),
        eos_token_ids=fields.token_ids("eos_token_id"),
        torch_dtype=fields.text("dtype", fields.text("torch_dtype", None)),
    )
    parameters = sum(math.prod(shape) for shape in family.tensor_shapes(config).values())
    if parameters > _MAX_PARAMETERS:
        raise fields.invalid(
            f"its sizes give a model of {parameters:,} weights; at most {_MAX_PARAMETERS:,} are supported"
        )
    return config


def _read_heads(fields: JsonFields, family: Family) -> tuple[int, int, int, int]:
    """Return hidden_size, num_heads, num_kv_heads and head_dim after checking that they fit each other."""
    hidden, heads, kv_heads = (family.config_keys[field] for field in ("hidden_size", "num_heads", "num_kv_heads"))
    hidden_size = fields.integer(hidden, 1, _MAX_DIMENSION)
    num_heads = fields.integer(heads, 1, _MAX_HEADS)
    num_kv_heads = fields.integer(kv_heads, 1, _MAX_HEADS)
    if "head_dim" in family.config_keys:
        head_dim = fields.integer(family.config_keys["head_dim"], 1, _MAX_HEAD_DIM)
    else:
        if fields.values.get("head_dim") is None and hidden_size % num_heads:
            raise fields.invalid(f"{hidden} {hidden_size} is not a multiple of {heads} {num_heads}")
        head_dim = fields.integer("head_dim", 1, _MAX_HEAD_DIM, hidden_size // num_heads)
    if num_heads % num_kv_heads:
        raise fields.invalid(f"{heads} {num_heads} is not a multiple of {kv_heads} {num_kv_heads}")
    if head_dim % 2:
        raise fields.invalid(f"head_dim {head_dim} is odd; rotary embeddings need an even number")
    return hidden_size, num_heads, num_kv_heads, head_dim


def _within_first_chunk(fields: JsonFields, max_positions: int) -> int:
    """Return the number of positions that plain attention supports.

    Dual chunk attention (arXiv 2402.17463) equals plain attention within the first chunk. Later chunks are not
    supported.
    """
    chunks = fields.values.get("dual_chunk_attention_config")
    if chunks is None:
        return max_positions
    if not isinstance(chunks, dict):
        raise fields.invalid(f"dual_chunk_attention_config is {short_repr(chunks)}, expected an object")
    inner = JsonFields(chunks, f"{fields.where}: dual_chunk_attention_config", fields.error)
    size, local = inner.integer("chunk_size", 2, _MAX_DIMENSION), inner.integer("local_size", 1, _MAX_DIMENSION)
    if local >= size:
        raise inner.invalid(f"local_size {local} is not less than chunk_size {size}")
    return min(max_positions, size - local)


def _read_rope(fields: JsonFields, max_positions: int) -> tuple[float, YarnScaling | None]:
    """Return rope_theta and the scaling from `rope_parameters` (newer files) or `rope_scaling` and `rope_theta`."""
    key = "rope_parameters" if fields.values.get("rope_parameters") is not None else "rope_scaling"
    parameters = fields.values.get(key)
    if parameters is None:
        return _theta(fields), None
    if not isinstance(parameters, dict):
        raise fields.invalid(f"{key} is {short_repr(parameters)}, expected an object")
    inner = JsonFields(parameters, f"{fields.where}: {key}", fields.error)
    theta = _theta(fields) if parameters.get("rope_theta") is None else _theta(inner)
    kind = inner.text("rope_type", inner.text("type", "default"))
    if parameters.get("partial_rotary_factor") not in (None, 1.0):
        raise inner.invalid("partial_rotary_factor other than 1 is not supported")
    if kind == "default":
        return theta, None
    if kind != "yarn":
        raise inner.invalid(f"rope type {short_repr(kind)} is not supported; only 'yarn' and 'default' are")
    if not inner.boolean("truncate", True):
        raise inner.invalid("truncate is false, which is not supported")
    factor = _scale(inner, "factor")
    name = "original_max_position_embeddings"
    original = inner.integer(name, 1, _MAX_DIMENSION, fields.integer(name, 1, _MAX_DIMENSION, max_positions))
    beta_fast, beta_slow = _scale(inner, "beta_fast", 32.0), _scale(inner, "beta_slow", 1.0)
    if beta_fast < beta_slow:
        raise inner.invalid(f"beta_fast {beta_fast:g} is less than beta_slow {beta_slow:g}")
    return theta, YarnScaling(factor, original, beta_fast, beta_slow, _attention_factor(inner, factor))


def _theta(fields: JsonFields) -> float:
    return fields.number("rope_theta", _LEAST_THETA, _MOST_THETA)


def _scale(inner: JsonFields, key: str, default: float | None = None) -> float:
    return inner.number(key, _LEAST_SCALE, _MOST_SCALE, default)


def _attention_factor(inner: JsonFields, factor: float) -> float:
    """Return the explicit value, DeepSeek's ratio of two mscales, or the YaRN paper's 0.1 ln(factor) + 1."""
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
