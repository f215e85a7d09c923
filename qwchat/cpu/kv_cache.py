"""The KV cache: keys and values in the order in which the attention kernels read them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.model_config import ModelConfig
from quant.wording import Argument, ArgumentMessage, SuggestedArgument
from qwchat.cpu.kernels import kernel_store
from qwchat.cpu.kernels.records import CACHE, KV_KINDS, SPLIT_POSITIONS
from qwchat.cpu.memory import allocate_on_demand, require_memory
from qwchat.cpu.workspace import LogitsBuffer
from qwchat.limits import DEFAULT_ACTIVATIONS, EXACT_CACHE_BYTES
from qwchat.model import rope

_TILE_POSITIONS = 16  # positions that are stored together in every part of the cache


def choose_kv_kind(requested: str, config: ModelConfig, context: int) -> str:
    """Return the kind of a KV cache.

    For `auto` it is `f32` as long as that takes at most EXACT_CACHE_BYTES, and `q8` beyond. Any other `requested` is
    returned unchanged.
    """
    if requested != "auto":
        return requested
    needed = 2 * 4 * config.num_layers * config.num_kv_heads * config.head_dim * context
    return "f32" if needed <= EXACT_CACHE_BYTES else "q8"


def cache_bytes(config: ModelConfig, context: int, kind: str, layers: int) -> int:
    """Return the bytes of a KV cache of `context` positions, `f32` or `q8`, of that many layers."""
    capacity = -(-context // SPLIT_POSITIONS) * SPLIT_POSITIONS
    return 2 * layers * sum(_layer_bytes(config, capacity, kind))


def _layer_bytes(config: ModelConfig, capacity: int, kind: str) -> tuple[int, int]:
    """Return the bytes of the keys (or values) of a layer, and of their scales."""
    elements = config.num_kv_heads * capacity * config.head_dim
    return (elements, elements // 32 * 2) if kind == "q8" else (elements * 4, 0)


class KVCache:
    """Keys and values of up to `context` positions, in the layout that `qwchat.cpu.kernels.attention_tiles` describes.

    The system provides each page of memory when it is first written.

    Args:
        config: the model's shapes.
        context: positions.
        kind: `f32` or `q8`.
        layers: the model's layers whose keys and values are kept.
        offsets: for `q8`, the `key_offsets` of each of these layers.
        logits: where a pass over this cache writes its logits, until the next pass over it; None without a head.
        activations: bits of the activations that keys and values are computed with.

    Raises:
        NotEnoughMemoryError: the cache needs more memory than is available.
    """

    def __init__(
        self,
        config: ModelConfig,
        context: int,
        kind: str,
        layers: range,
        offsets: Sequence[NDArray[np.float32]] = (),
        logits: LogitsBuffer | None = None,
        activations: int = DEFAULT_ACTIVATIONS,
    ) -> None:
        self.config, self.kind, self.layers, self.logits = config, kind, layers, logits
        self.activations = activations
        self.capacity = -(-context // SPLIT_POSITIONS) * SPLIT_POSITIONS
        layer_bytes, scale_bytes = _layer_bytes(config, self.capacity, kind)
        needed = cache_bytes(config, context, kind, len(layers))
        smaller = ArgumentMessage("choose a smaller ", Argument("context"))
        remedy = smaller if kind == "q8" else ArgumentMessage(smaller, " or ", SuggestedArgument("kv", "q8"))
        require_memory(needed, f"the KV cache of {context:,} tokens", remedy)
        self._memory = [
            allocate_on_demand(len(layers) * count) for count in (layer_bytes, scale_bytes, layer_bytes, scale_bytes)
        ]
        self._offsets = offsets
        self.records = self._records()

    def _records(self) -> NDArray[Any]:
        """Return a CACHE record for each layer."""
        config, records = self.config, np.zeros(len(self.layers), CACHE)
        records["kind"] = KV_KINDS[self.kind]
        records["num_heads"], records["num_kv_heads"] = config.num_heads, config.num_kv_heads
        records["head_dim"], records["capacity"] = config.head_dim, self.capacity
        for index, record in enumerate(records):
            for field, part in zip(("k", "k_scales", "v", "v_scales"), self._memory, strict=True):
                record[field] = part.ctypes.data + index * (part.nbytes // len(records))
            if self._offsets:
                record["k_offset"] = self._offsets[index].ctypes.data
        return records

    @property
    def layout(self) -> tuple[object, ...]:
        """Properties that two caches must share to be used by one decoder."""
        return self.config, self.kind, self.layers, self.capacity, self.activations

    @cached_property
    def layout_id(self) -> bytes:
        """Hash (32 bytes) of everything except the weights that keys and values depend on.

        That includes the source code that computes them, since another version may round differently. SIMD levels
        agree.
        """
        sources = kernel_store.KERNELS.source_digest + Path(rope.__file__).read_bytes()
        properties = repr((self.config, self.kind, self.layers, self.activations))
        return hashlib.sha256(sources + properties.encode()).digest()

    def segments(self, layer: int, positions: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the memory that the first `positions` positions of a layer take, in contiguous pieces.

        Whole tiles of 16 positions are included. The order is: keys by head, their scales, values by column of 16
        dimensions, their scales. A piece has the same length in a cache of any capacity.
        """
        heads, dims = self.config.num_kv_heads, self.config.head_dim
        used = min(-(-positions // _TILE_POSITIONS) * _TILE_POSITIONS, self.capacity)
        for part, rows in zip(self._memory, (heads, heads, heads * dims // 16, heads * dims // 32), strict=True):
            if not part.size:
                continue
            lines = part.reshape(len(self.layers), rows, -1)[self.layers.index(layer)]
            yield from lines[:, : lines.shape[1] // self.capacity * used]

    def segment_bytes(self, layer: int, positions: int) -> list[int]:
        """Return the length of each piece of `segments`."""
        return [piece.nbytes for piece in self.segments(layer, positions)]

    def writable_segments(self, layer: int, positions: int) -> AbstractContextManager[Iterator[NDArray[np.uint8]]]:
        """Return a context whose value yields the pieces of `segments`, which are the cache's own memory."""
        return nullcontext(self.segments(layer, positions))

    def clear(self) -> None:
        """Zero all keys and values, so that a non-finite number in them cannot be read by a later reply."""
        for part in self._memory:
            part.fill(0)
