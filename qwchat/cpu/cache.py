"""The KV cache: keys and values in the order in which the attention kernels read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.config import ModelConfig
from qwchat.cpu.kernels.records import KV_KINDS, SPLIT
from qwchat.cpu.memory import on_demand, require_memory
from qwchat.model.rope import inverse_frequencies

F32_LIMIT = 128 << 20  # bytes up to which `auto` keeps f32: a cache of that size is small beside what else is there
_STILL = 8192
_TILE = 16  # positions that lie together in every part of the cache


def choose_kind(asked: str, config: ModelConfig, context: int) -> str:
    """``f32`` or ``q8`` for ``auto``, by what f32 would take of memory; any other name is returned as it is."""
    if asked != "auto":
        return asked
    needed = 2 * 4 * config.num_layers * config.num_kv_heads * config.head_dim * context
    return "f32" if needed <= F32_LIMIT else "q8"


def key_offsets(config: ModelConfig, bias: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is taken from every rotated key of a layer before it is quantised, (num_kv_heads * head_dim) f32.

    Adding one vector to all keys adds the same to all scores of a query and leaves the softmax as it is, so the part
    of the keys that does not depend on the position may go ("smoothing" of K in SageAttention, Zhang et al. 2024).
    Here that is the bias in the dimensions that RoPE hardly turns: Qwen2's reaches hundreds there, and would take all
    steps of an 8-bit group.
    """
    frequencies, factor = inverse_frequencies(config)
    slow = np.tile(np.asarray(frequencies) * _STILL < 1, 2)
    heads = bias.reshape(config.num_kv_heads, config.head_dim)
    result: NDArray[np.float32] = np.where(slow, heads * np.float32(factor), 0).astype(np.float32).reshape(-1)
    return result


class KVCache:
    """Room for ``context`` positions of the kind ``f32`` or ``q8``, laid out as
    :mod:`qwchat.cpu.kernels.attention_tiles` says.  Pages are taken from the system when they are first written.

    Raises NotEnoughMemoryError.
    """

    def __init__(self, config: ModelConfig, context: int, kind: str) -> None:
        self.capacity = -(-context // SPLIT) * SPLIT
        self.kind = kind
        self.config = config
        elements = config.num_kv_heads * self.capacity * config.head_dim  # of K or V in a layer
        size = 1 if kind == "q8" else 4
        self._layer_bytes = elements * size
        self._scale_bytes = elements // 32 * 2 if kind == "q8" else 0
        needed = 2 * config.num_layers * (self._layer_bytes + self._scale_bytes)
        remedy = "choose a smaller context (ctx)" + ("" if kind == "q8" else " or kv q8")
        require_memory(needed, f"the KV cache of {context:,} tokens", remedy)
        self._memory = [
            on_demand(config.num_layers * count)
            for count in (self._layer_bytes, self._scale_bytes, self._layer_bytes, self._scale_bytes)
        ]
        self._offsets: dict[int, NDArray[np.float32]] = {}

    def fill(self, layer: int, record: Any, key_bias: NDArray[np.float32]) -> None:
        """Writes the addresses of one layer's cache into a CACHE record.  ``key_bias`` (num_kv_heads * head_dim)."""
        config = self.config
        record["kind"] = KV_KINDS[self.kind]
        record["num_heads"], record["num_kv_heads"] = config.num_heads, config.num_kv_heads
        record["head_dim"], record["capacity"] = config.head_dim, self.capacity
        for field, part in zip(("k", "k_scales", "v", "v_scales"), self._memory, strict=True):
            record[field] = part.ctypes.data + layer * (part.nbytes // config.num_layers)
        if self.kind == "q8":
            self._offsets[layer] = key_offsets(config, key_bias)
            record["k_offset"] = self._offsets[layer].ctypes.data

    def rows(self, layer: int, positions: int) -> Iterator[NDArray[np.uint8]]:
        """The memory of a layer that the first ``positions`` positions take, up to whole tiles, in pieces.

        Keys head by head, their scales, values by columns of 16 dimensions, their scales: each piece is contiguous, and
        as long for any capacity.
        """
        heads, dims = self.config.num_kv_heads, self.config.head_dim
        used = min(-(-positions // _TILE) * _TILE, self.capacity)
        for part, rows in zip(self._memory, (heads, heads, heads * dims // 16, heads * dims // 32), strict=True):
            lines = part.reshape(self.config.num_layers, rows, -1)[layer]
            yield from lines[:, : lines.shape[1] // self.capacity * used] if part.size else ()

    def clear(self) -> None:
        """Zeroes everything: a non-finite value must not outlive the run that wrote it."""
        for part in self._memory:
            part.fill(0)
