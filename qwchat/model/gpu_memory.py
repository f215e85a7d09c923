"""Arrays that a decoder on a GPU allocates: weights, KV cache and work space. This knows no device.

The estimate adds up the same arrays that the decoder allocates. Each array starts at a multiple of ALIGNMENT bytes.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from quant.families import expected_tensors, family_of
from quant.formats import Layout, PackedTensor, find_format
from quant.formats.format import TILE_ROWS, tile_count
from quant.formats.widening import device_layout
from quant.model_config import ModelConfig
from qwchat.limits import EXACT_CACHE_BYTES

ALIGNMENT = 256
CHUNK = 1024
"""Most tokens of a pass."""
DECODE_ROWS = 8
"""Most tokens of a pass by the decode kernels, and most rows of logits."""
ATTENTION_SPLITS = 64
"""Most parts into which decode attention divides the positions of a KV head."""
QUERY_ROWS = 16
"""Query heads of tokens that decode attention takes together."""
TOP_CANDIDATES = 64
CANDIDATE_PART = 4096
"""Logits among which a block looks for candidates."""
CONTEXT_BYTES = 400 << 20
"""Memory of the driver's context and of loaded kernels: an assumption, 300 to 500 MB on current cards."""

_GROUP = 32
_EMBEDDING, _HEAD, _FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_FUSED = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
}
_SINGLE = ("self_attn.o_proj", "mlp.down_proj")
_NORMS = ("input_layernorm", "self_attn.q_norm", "self_attn.k_norm", "post_attention_layernorm")


@dataclass(frozen=True)
class TensorLayout:
    """How a tensor of a model folder is stored: its format, its group size (0 without groups) and its parts."""

    format: str
    group_size: int
    layout: Layout

    @property
    def kind(self) -> tuple[str, int, tuple[str, ...]]:
        """Properties that matrices must share to be multiplied by one kernel launch."""
        return self.format, self.group_size, tuple(self.layout)

    @property
    def on_device(self) -> TensorLayout:
        """How a GPU stores the tensor."""
        fmt, parts = device_layout(find_format(self.format), self.layout)
        return replace(self, format=fmt.name, layout=parts)


Tensors = Mapping[str, TensorLayout]
"""All tensors of a model by name."""


def stored_tensors(config: ModelConfig, tensor: Callable[[str], PackedTensor]) -> Tensors:
    """Return how the tensors of a model are stored; `tensor` returns one by its name and does not read it."""
    packed = {name: tensor(name) for name in expected_tensors(config)}
    return {
        name: TensorLayout(
            each.format, each.group_size, {part: (array.dtype, array.shape) for part, array in each.parts.items()}
        )
        for name, each in packed.items()
    }


@dataclass(frozen=True)
class DeviceArray:
    """An array in the device's memory."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def allocated(self) -> int:
        """Bytes that the array takes: `nbytes` rounded up to ALIGNMENT."""
        return -(-self.nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class DeviceTensor:
    """Weights that are uploaded together.

    Attributes:
        name: Hugging Face's name of the tensor; of matrices that are stacked, `model.layers.N.qkv`, `...gate_up`, or
            the first one's name if only some of these are stacked.
        sources: tensors of the model whose rows are stacked, in order.
        parts: arrays by the name of the format's part, such as `codes`. Tiles are the first axis.
    """

    name: str
    sources: tuple[str, ...]
    parts: Mapping[str, DeviceArray]

    @property
    def allocated(self) -> int:
        """Bytes that the parts take."""
        return _allocated(self.parts.values())


@dataclass(frozen=True)
class DevicePart:
    """Part of a model that runs on the device.

    Attributes:
        layers: the layers.
        embedding: whether token embeddings are looked up there.
        head: whether the final norm and the output head run there.
    """

    layers: range
    embedding: bool
    head: bool

    @classmethod
    def whole(cls, config: ModelConfig) -> DevicePart:
        """Return the whole model."""
        return cls(range(config.num_layers), embedding=True, head=True)

    @classmethod
    def last(cls, config: ModelConfig, count: int) -> DevicePart:
        """Return the last `count` layers and the head; the embedding and the other layers run on the CPU."""
        return cls(range(config.num_layers - count, config.num_layers), embedding=False, head=True)


@dataclass(frozen=True)
class GpuMemory:
    """Arrays of a part of a model on a GPU, with one KV cache."""

    part: DevicePart
    weight_arrays: tuple[DeviceTensor, ...]
    cache_arrays: tuple[DeviceArray, ...]
    workspace_arrays: tuple[DeviceArray, ...]

    @cached_property
    def weights(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.allocated for tensor in self.weight_arrays)

    @cached_property
    def cache(self) -> int:
        """Bytes of the KV cache."""
        return _allocated(self.cache_arrays)

    @cached_property
    def workspace(self) -> int:
        """Bytes of the work space."""
        return _allocated(self.workspace_arrays)

    @property
    def allocated(self) -> int:
        """Bytes of all arrays."""
        return self.weights + self.cache + self.workspace

    @property
    def total(self) -> int:
        """Bytes of the card's memory that the process uses, with the driver's context."""
        return self.allocated + CONTEXT_BYTES


def choose_kv_kind(requested: str, config: ModelConfig, context: int) -> str:
    """Return the kind of a KV cache on the device, `f16` or `q8`.

    `f32` means the exact kind, which is `f16` here. `auto` means `f16` as long as that takes at most EXACT_CACHE_BYTES,
    and `q8` beyond.
    """
    if requested != "auto":
        return "q8" if requested == "q8" else "f16"
    needed = 2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim * context
    return "f16" if needed <= EXACT_CACHE_BYTES else "q8"


def gpu_memory(config: ModelConfig, tensors: Tensors, context: int, kind: str, part: DevicePart) -> GpuMemory:
    """Return the arrays of a part of a model.

    Args:
        config: sizes of the model.
        tensors: how its tensors are stored.
        context: positions of the KV cache.
        kind: kind of the KV cache, `f16` or `q8`.
        part: what runs on the device.
    """
    return GpuMemory(
        part,
        tuple(_device_tensors(config, tensors, part)),
        tuple(cache_arrays(config, context, kind, part.layers)),
        tuple(_workspace_arrays(config, context, part)),
    )


class PartSizes:
    """Memory of the parts of a model that a GPU can take, for one context window.

    Args:
        config: sizes of the model.
        tensors: how its tensors are stored.
        context: positions of the KV cache.
        kind: kind of the KV cache, `f16` or `q8`.
    """

    def __init__(self, config: ModelConfig, tensors: Tensors, context: int, kind: str) -> None:
        self.whole = gpu_memory(config, tensors, context, kind, DevicePart.whole(config))
        self._config, self._tensors, self._context, self._kind = config, tensors, context, kind

    @cached_property
    def layer_weights(self) -> tuple[int, ...]:
        """Bytes of the weights of each layer."""
        weights = [0] * self._config.num_layers
        for tensor in self.whole.weight_arrays:
            if (layer := family_of(self._config).layer_of(tensor.name)) is not None:
                weights[layer] += tensor.allocated
        return tuple(weights)

    @cached_property
    def head_weights(self) -> int:
        """Bytes of the final norm and of the output head."""
        return self.memory(DevicePart.last(self._config, 0)).weights

    @cached_property
    def totals(self) -> tuple[int, ...]:
        """Bytes of the card's memory for the head and the last 0, 1, ... layers."""
        layers = self._config.num_layers
        parts = [DevicePart.last(self._config, count) for count in range(layers + 1)]
        weights = accumulate(reversed(self.layer_weights), initial=self.head_weights)
        return tuple(
            taken
            + self.whole.cache * len(part.layers) // layers
            + _allocated(_workspace_arrays(self._config, self._context, part))
            + CONTEXT_BYTES
            for part, taken in zip(parts, weights, strict=True)
        )

    def largest(self, memory: int) -> DevicePart:
        """Return the largest part that fits `memory` bytes of a card: the whole, or the last layers with the head.

        It has no layers if not a single one fits, and not all of them without the embedding, since the CPU runs one at
        least.
        """
        if self.whole.total <= memory:
            return self.whole.part
        fitting = min(bisect_right(self.totals, memory), self._config.num_layers)
        return DevicePart.last(self._config, max(0, fitting - 1))

    def memory(self, part: DevicePart) -> GpuMemory:
        """Return the arrays of a part."""
        return gpu_memory(self._config, self._tensors, self._context, self._kind, part)


def _device_tensors(config: ModelConfig, tensors: Tensors, part: DevicePart) -> Iterator[DeviceTensor]:
    """Yield the weights of a part in the order of the model's modules."""
    tensors = {name: tensor.on_device for name, tensor in tensors.items()}
    expected = expected_tensors(config)
    if part.embedding or (part.head and config.tie_word_embeddings):
        yield _stacked(_EMBEDDING, (_EMBEDDING,), tensors)
    for layer in part.layers:
        prefix = f"model.layers.{layer}."
        for norm in _NORMS:
            if (name := f"{prefix}{norm}.weight") in expected:
                yield _stacked(name, (name,), tensors)
        for name, modules in _FUSED.items():
            yield from _runs(prefix + name, [f"{prefix}{module}.weight" for module in modules], tensors)
        biases = [name for module in _FUSED["qkv"] if (name := f"{prefix}{module}.bias") in expected]
        if biases:
            rows = sum(tile_count(expected[name][0]) * TILE_ROWS for name in biases)
            values = DeviceArray(f"{prefix}qkv.bias", np.dtype(np.float32), (rows,))
            yield DeviceTensor(values.name, tuple(biases), {"values": values})
        for module in _SINGLE:
            yield _stacked(f"{prefix}{module}.weight", (f"{prefix}{module}.weight",), tensors)
    if part.head:
        yield _stacked(_FINAL_NORM, (_FINAL_NORM,), tensors)
        if not config.tie_word_embeddings:
            yield _stacked(_HEAD, (_HEAD,), tensors)


def _runs(name: str, members: list[str], tensors: Tensors) -> Iterator[DeviceTensor]:
    """Yield matrices with the same input; neighbours that are stored alike are stacked."""
    runs: list[list[str]] = []
    for member in members:
        if runs and tensors[runs[-1][0]].kind == tensors[member].kind:
            runs[-1].append(member)
        else:
            runs.append([member])
    for run in runs:
        yield _stacked(name if len(run) == len(members) else run[0], tuple(run), tensors)


def _stacked(name: str, sources: tuple[str, ...], tensors: Tensors) -> DeviceTensor:
    """Return tensors of the same kind with their first axes, the tiles of matrices, joined."""
    layouts = [tensors[source].layout for source in sources]
    parts = {}
    for part, (dtype, shape) in layouts[0].items():
        rows = sum(layout[part][1][0] for layout in layouts)
        parts[part] = DeviceArray(f"{name}.{part}", dtype, (rows, *shape[1:]))
    return DeviceTensor(name, sources, parts)


def cache_arrays(config: ModelConfig, context: int, kind: str, layers: range) -> Iterator[DeviceArray]:
    """Yield keys and values of each layer, (kv_heads, capacity, head_dim), with the scales of the kind `q8`."""
    rows = (config.num_kv_heads, capacity_of(context))
    for layer in layers:
        for name in ("keys", "values"):
            if kind == "q8":
                yield _array(f"{name}.{layer}", np.int8, *rows, config.head_dim)
                yield _array(f"{name}.{layer}.scales", np.float16, *rows, config.head_dim // _GROUP)
            else:
                yield _array(f"{name}.{layer}", np.float16, *rows, config.head_dim)


def capacity_of(context: int) -> int:
    """Return the positions of a KV cache: `context` rounded up to a multiple of 64."""
    return -(-context // 64) * 64


def _workspace_arrays(config: ModelConfig, context: int, part: DevicePart) -> Iterator[DeviceArray]:
    """Yield the buffers of a pass. The first axis is the tokens of a chunk, or the rows of a decode step."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    widest = max(config.hidden_size, queries, config.intermediate_size)
    group = config.num_heads // config.num_kv_heads
    yield _array("step", np.int32, 8)
    yield _array("ids", np.int32, CHUNK)
    yield _array("residual", np.float32, CHUNK, config.hidden_size)
    yield _array("x8", np.int8, DECODE_ROWS, widest)
    yield _array("xs", np.int32, DECODE_ROWS, -(-widest // _GROUP), 2)  # a scale in f32, and a sum
    yield _array("xh", np.float16, CHUNK, widest)
    yield _array("xf", np.float32, CHUNK)
    yield _array("qkv", np.float32, CHUNK, queries + 2 * keys)
    yield _array("gate_up", np.float32, CHUNK, 2 * config.intermediate_size)
    tiles = -(-DECODE_ROWS * group // QUERY_ROWS)
    partial = QUERY_ROWS * (config.head_dim + 2) + DECODE_ROWS * config.head_dim
    yield _array("partials", np.float32, tiles, config.num_kv_heads, ATTENTION_SPLITS, partial)
    yield _array("arrivals", np.int32, tiles * config.num_kv_heads)
    yield _array("q4_levels", np.uint8, 16)
    yield _array("key_offsets", np.float32, len(part.layers), keys)
    yield _array("cos", np.float32, capacity_of(context), config.head_dim // 2)
    yield _array("sin", np.float32, capacity_of(context), config.head_dim // 2)
    if part.head:
        yield _array("logits", np.float32, DECODE_ROWS, tile_count(config.vocab_size) * TILE_ROWS)
        yield _array("candidate_values", np.float32, DECODE_ROWS, TOP_CANDIDATES)
        yield _array("candidate_ids", np.int32, DECODE_ROWS, TOP_CANDIDATES)
        # Largest logit, log-sum-exp, logits that are not finite, candidates.
        yield _array("summaries", np.float32, DECODE_ROWS, 4)
        parts = -(-config.vocab_size // CANDIDATE_PART)
        yield _array("candidate_lists", np.int32, DECODE_ROWS, parts, TOP_CANDIDATES, 2)
        yield _array("candidate_sums", np.float32, DECODE_ROWS, parts, 4)
        yield _array("candidate_arrivals", np.int32, DECODE_ROWS)


def _allocated(arrays: Iterable[DeviceArray]) -> int:
    return sum(array.allocated for array in arrays)


def _array(name: str, dtype: type, *shape: int) -> DeviceArray:
    return DeviceArray(name, np.dtype(dtype), shape)
