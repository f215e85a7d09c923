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

_MAX_DIMENSION = 1 << 24
_MAX_LAYERS = 4096
_MAX_NUMBER = 1e30


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
        return cls.from_dict(read_json_object(file, error), str(file), error)

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], where: str = "config.json", error: type[QuantError] = CheckpointError
    ) -> ModelConfig:
        """Read a parsed config. `where` names it in messages. Raises `error` for what is wrong or unsupported."""
        read = _Reader(values, where, error)
        _refuse_unsupported(read)
        hidden_size = read.dimension("hidden_size")
        num_heads = read.dimension("num_attention_heads")
        num_kv_heads = read.dimension("num_key_value_heads")
        if values.get("head_dim") is None and hidden_size % num_heads:
            raise read.fail(f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}")
        head_dim = read.dimension("head_dim", hidden_size // num_heads)
        if num_heads % num_kv_heads:
            raise read.fail(f"num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}")
        if head_dim % 2:
            raise read.fail(f"head_dim {head_dim} is odd; rotary embedding needs pairs")
        max_positions = read.dimension("max_position_embeddings")
        rope_theta, rope_scaling = _read_rope(read, max_positions)
        return cls(
            hidden_size=hidden_size,
            intermediate_size=read.dimension("intermediate_size"),
            num_layers=read.dimension("num_hidden_layers", maximum=_MAX_LAYERS),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=read.dimension("vocab_size"),
            max_position_embeddings=max_positions,
            rms_norm_eps=read.number("rms_norm_eps"),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            tie_word_embeddings=read.boolean("tie_word_embeddings", False),
            bos_token_id=read.token_id("bos_token_id"),
            eos_token_ids=read.token_ids("eos_token_id"),
            torch_dtype=read.text("dtype", read.text("torch_dtype", None)),
        )


class _Reader:
    """Typed access to one JSON object, with messages that name the file, the key and the value."""

    def __init__(self, values: Mapping[str, Any], where: str, error: type[QuantError]) -> None:
        self.values = values
        self.where = where
        self.error = error

    def fail(self, what: str) -> QuantError:
        return self.error(f"{self.where}: {what}")

    def _get(self, key: str, kind: str) -> Any:
        value = self.values.get(key)
        if value is None:
            raise self.fail(f"the key {key!r} ({kind}) is missing")
        return value

    def dimension(self, key: str, default: int | None = None, maximum: int = _MAX_DIMENSION) -> int:
        value = default if self.values.get(key) is None and default is not None else self._get(key, "integer")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
            raise self.fail(f"{key} is {_short(value)}, expected an integer from 1 to {maximum}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = default if self.values.get(key) is None and default is not None else self._get(key, "number")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_NUMBER:
            raise self.fail(f"{key} is {_short(value)}, expected a positive number")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return None if self.values.get(key) is None else self.number(key)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(f"{key} is {_short(value)}, expected true or false")
        return value

    def text(self, key: str, default: str | None) -> str | None:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.fail(f"{key} is {_short(value)}, expected a string")
        return value

    def token_id(self, key: str) -> int | None:
        ids = self.token_ids(key)
        return ids[0] if ids else None

    def token_ids(self, key: str) -> tuple[int, ...]:
        value = self.values.get(key)
        items = value if isinstance(value, list) else [] if value is None else [value]
        for item in items:
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < _MAX_DIMENSION:
                raise self.fail(f"{key} is {_short(value)}, expected a token id or a list of token ids")
        return tuple(items)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _refuse_unsupported(read: _Reader) -> None:
    """Refuse what the forward pass would silently compute wrongly."""
    model_type = read.values.get("model_type")
    if model_type != "qwen2":
        raise read.fail(f"model_type is {_short(model_type)}; only 'qwen2' is supported")
    if read.values.get("hidden_act") != "silu":
        raise read.fail(f"hidden_act is {_short(read.values.get('hidden_act'))}; only 'silu' is supported")
    if read.boolean("use_sliding_window", False):
        raise read.fail("use_sliding_window is true; sliding-window attention is not supported")
    layer_types = read.values.get("layer_types")
    if layer_types is not None and (
        not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types)
    ):
        raise read.fail("layer_types asks for attention other than 'full_attention', which is not supported")
    if read.values.get("quantization_config") is not None:
        raise read.fail("the checkpoint is already quantised (quantization_config); give the original one")


def _read_rope(read: _Reader, max_positions: int) -> tuple[float, YarnScaling | None]:
    """rope_theta and scaling, from `rope_parameters` (newer files) or `rope_scaling` plus `rope_theta`."""
    key = "rope_parameters" if read.values.get("rope_parameters") is not None else "rope_scaling"
    parameters = read.values.get(key)
    if parameters is None:
        return read.number("rope_theta"), None
    if not isinstance(parameters, dict):
        raise read.fail(f"{key} is {_short(parameters)}, expected an object")
    inner = _Reader(parameters, f"{read.where}: {key}", read.error)
    theta = inner.optional_number("rope_theta") or read.number("rope_theta")
    kind = inner.text("rope_type", inner.text("type", "default"))
    if inner.optional_number("partial_rotary_factor") not in (None, 1.0):
        raise inner.fail("partial_rotary_factor other than 1 is not supported")
    if kind == "default":
        return theta, None
    if kind != "yarn":
        raise inner.fail(f"rope type {_short(kind)} is not supported; only 'yarn' and 'default' are")
    if not inner.boolean("truncate", True):
        raise inner.fail("truncate false is not supported")
    factor = inner.number("factor")
    original = inner.dimension(
        "original_max_position_embeddings", read.dimension("original_max_position_embeddings", max_positions)
    )
    return theta, YarnScaling(
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=inner.number("beta_fast", 32.0),
        beta_slow=inner.number("beta_slow", 1.0),
        attention_factor=_attention_factor(inner, factor),
    )


def _attention_factor(inner: _Reader, factor: float) -> float:
    """The explicit value, or DeepSeek's ratio of two mscales, or the YaRN paper's 0.1 ln(factor) + 1."""
    explicit = inner.optional_number("attention_factor")
    if explicit is not None:
        return explicit

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, mscale_all_dim = inner.optional_number("mscale"), inner.optional_number("mscale_all_dim")
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
