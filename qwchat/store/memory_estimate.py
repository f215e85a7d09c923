"""How much memory a model needs on the CPU, by the code that allocates it: weights, KV cache and work space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from quant.container import align
from quant.families import expected_tensors, family_of
from quant.formats import layout
from quant.model_config import ModelConfig
from quant.policy import conversion_spec, plan_tensors
from qwchat.cpu.kernels.records import SPLIT_POSITIONS
from qwchat.cpu.kv_cache import cache_bytes, choose_kv_kind
from qwchat.cpu.workspace import workspace_bytes
from qwchat.limits import DEFAULT_ACTIVATIONS
from qwchat.model.context_limits import context_limit
from qwchat.model.gpu_memory import TensorLayout, Tensors

PROGRAM_BYTES = 99_000_000
"""Python, its libraries and compiled code, measured by `benchmarks.memory_estimates`."""
TOKENIZER_BYTES = 75
"""Memory of the tokenizer for each token of the vocabulary, measured there too."""
_STORED_TYPES = {"float32": "f32", "float16": "f16"}
FITTING_SHARE = 0.9
"""Share of a machine's memory that a model may take."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one model at one preset with a full context window, in bytes.

    Attributes:
        context: tokens of the context window.
        kv: kind of the KV cache, `f32` or `q8`.
        weights: mapped from the model folder.
        cache: keys and values of all layers.
        workspace: buffers for a pass, and logits.
        program: Python, its libraries, compiled code and the tokenizer.
        weights_per_token: bytes of the weights that are read for each token of a reply.
    """

    context: int
    kv: str
    weights: int
    cache: int
    workspace: int
    program: int
    weights_per_token: int

    @property
    def anonymous(self) -> int:
        """Memory besides the mapped weights, which the system cannot drop: cache, work space and the program."""
        return self.cache + self.workspace + self.program

    @property
    def total(self) -> int:
        """Resident memory of the process."""
        return self.weights + self.anonymous

    @property
    def bytes_per_token(self) -> int:
        """Bytes that are read for each token of a reply at the end of the context window."""
        return self.weights_per_token + self.cache


def estimate(
    config: ModelConfig,
    tensors: Tensors,
    context: int,
    kv: str = "auto",
    threads: int = 2,
    activations: int = DEFAULT_ACTIVATIONS,
) -> MemoryEstimate:
    """Estimate the memory of a model.

    Args:
        config: sizes of the model.
        tensors: how its tensors are stored, from `planned_tensors` or `qwchat.model.gpu_memory.stored_tensors`.
        context: tokens of the context window.
        kv: `f32`, `q8`, or `auto` for what a chat would choose.
        threads: number of threads, each of which has buffers of its own.
        activations: bits of the activations, 8 or 16.
    """
    kind = choose_kv_kind(kv, config, context)
    capacity = -(-context // SPLIT_POSITIONS) * SPLIT_POSITIONS
    return MemoryEstimate(
        context,
        kind,
        weights_bytes(tensors),
        cache_bytes(config, context, kind, config.num_layers),
        workspace_bytes(config, capacity, threads, activations),
        PROGRAM_BYTES + TOKENIZER_BYTES * config.vocab_size,
        weights_per_token(config, tensors),
    )


@cache
def planned_tensors(config: ModelConfig, preset: str) -> Tensors:
    """Return how a conversion stores each tensor of weights in the type of config.json, by default bf16.

    Raises ArgumentError and FormatError.
    """
    shapes = expected_tensors(config)
    stored = _STORED_TYPES.get(config.torch_dtype or "", "bf16")
    plans = plan_tensors(config, conversion_spec(preset), dict.fromkeys(shapes, stored), dict.fromkeys(shapes, 0))
    return {
        plan.name: TensorLayout(
            plan.format, plan.group_size, layout(plan.format, plan.shape, plan.group_size, plan.zeros)
        )
        for plan in plans
    }


def weights_bytes(tensors: Tensors) -> int:
    """Return the size of weights.bin."""
    return sum(map(_stored_bytes, tensors.values()))


def weights_per_token(config: ModelConfig, tensors: Tensors) -> int:
    """Return the bytes of weights that are read for each token: all but an embedding that is not the head as well."""
    unread = None if config.tie_word_embeddings else family_of(config).embedding_name
    return sum(_stored_bytes(tensor) for name, tensor in tensors.items() if name != unread)


def _stored_bytes(tensor: TensorLayout) -> int:
    return sum(align(dtype.itemsize * math.prod(shape)) for dtype, shape in tensor.layout.values())


def fit(total: int, memory: int) -> Literal["yes", "tight", "no"]:
    """Return whether `total` bytes fit a machine: "tight" leaves less than a tenth to the system and other programs."""
    return "yes" if total <= FITTING_SHARE * memory else "tight" if total <= memory else "no"


def contexts(config: ModelConfig, asked: Sequence[int]) -> list[int]:
    """Return the context windows to show: those that were asked for, or 4,096, 32,768 and the model's longest."""
    if asked:
        return list(asked)
    longest = context_limit(config)
    return sorted({size for size in (4096, 32768, longest) if size <= longest})
