"""How much memory a model needs, by the code that allocates it: weights, KV cache and work space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from quant.families import expected_tensors
from quant.model_config import ModelConfig
from quant.policy import conversion_spec, plan_tensors
from qwchat.cpu.kernels.records import SPLIT_POSITIONS
from qwchat.cpu.kv_cache import cache_bytes, choose_kv_kind
from qwchat.cpu.workspace import workspace_bytes

PROGRAM_BYTES = 100 << 20
"""Python, its libraries, the tokenizer and compiled code; 92 to 108 MiB measured with the vocabulary of Qwen2."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one model at one preset with a full context window, in bytes.

    Attributes:
        preset: formats of the weights; see `quant.policy`.
        context: tokens of the context window.
        kv: kind of the KV cache, `f32` or `q8`.
        weights: mapped from the model folder, and read once per token.
        cache: keys and values of all layers.
        workspace: buffers for a pass, and logits.
    """

    preset: str
    context: int
    kv: str
    weights: int
    cache: int
    workspace: int

    @property
    def total(self) -> int:
        """Resident memory of the process in bytes, the program itself included."""
        return self.weights + self.cache + self.workspace + PROGRAM_BYTES


def estimate(
    config: ModelConfig, preset: str, context: int, kv: str = "auto", threads: int = 2, weights: int | None = None
) -> MemoryEstimate:
    """Estimate the memory of a model.

    Args:
        config: sizes of the model.
        preset: formats of the weights.
        context: tokens of the context window.
        kv: `f32`, `q8`, or `auto` for what a chat would choose.
        threads: number of threads, each of which has buffers of its own.
        weights: bytes of the weights of a converted model; by default those that a conversion of bf16 weights makes.

    Raises:
        ArgumentError: the preset is unknown.
        FormatError: the shape of a tensor does not fit its format.
    """
    kind = choose_kv_kind(kv, config, context)
    capacity = -(-context // SPLIT_POSITIONS) * SPLIT_POSITIONS
    return MemoryEstimate(
        preset,
        context,
        kind,
        weights_bytes(config, preset) if weights is None else weights,
        cache_bytes(config, context, kind, config.num_layers),
        workspace_bytes(config, capacity, threads),
    )


@cache
def weights_bytes(config: ModelConfig, preset: str) -> int:
    """Return the bytes of all tensors after a conversion of bf16 weights. Raises ArgumentError and FormatError."""
    shapes = expected_tensors(config)
    plans = plan_tensors(config, conversion_spec(preset), dict.fromkeys(shapes, "bf16"), dict.fromkeys(shapes, 0))
    return sum(plan.packed_bytes for plan in plans)


def contexts(config: ModelConfig, asked: Sequence[int]) -> list[int]:
    """Return the context windows to show: those that were asked for, or 4,096, 32,768 and the model's longest."""
    if asked:
        return list(asked)
    longest = config.max_position_embeddings
    return sorted({size for size in (4096, 32768, longest) if size <= longest})
