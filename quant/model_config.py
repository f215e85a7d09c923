"""Model hyperparameters: shapes, RoPE, special tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class YarnScaling:
    """YaRN context extension (arXiv 2309.00071) with all defaults filled in."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    """Multiplies cos and sin; 0.1 ln(factor) + 1 unless the config sets it."""


@dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters of one model, for every model family and device.

    `quant.families` reads them from config.json.
    """

    model_type: str
    """Key of the model family in `quant.families.FAMILIES`."""
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
