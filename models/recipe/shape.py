"""Sizes of a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, those of mini unless others are given; `config.json` is written from them.

    `family` is `qwen2` (biases on q, k and v) or `qwen3` (no biases, a norm on each head of q and k).
    """

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    context: int = 2048
    rope_theta: float = 10000.0
    eps: float = 1e-6
    tied: bool = True
    family: str = "qwen2"
