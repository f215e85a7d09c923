"""A model whose layers are divided between two decoders, usually of two devices."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from quant.model_config import ModelConfig
from qwchat.model.decoder import Cache, CancelCheck, Decoder
from qwchat.model.logit_rows import HostRow, LogitRow


class SplitCache:
    """KV cache of one conversation: one part for each decoder.

    Attributes:
        first: the part of the first layers.
        last: the part of the other layers.
        logits: logits (rows, vocab) f32 of the last pass over this cache.
    """

    def __init__(self, first: Cache, last: Cache) -> None:
        self.first, self.last = first, last
        self.logits = np.zeros((0, first.config.vocab_size), np.float32)

    @property
    def config(self) -> ModelConfig:
        """The model's shapes."""
        return self.first.config

    @property
    def kind(self) -> str:
        """Format of the numbers. Where the parts differ, the names of both."""
        return self.first.kind if self.first.kind == self.last.kind else f"{self.first.kind}+{self.last.kind}"

    @property
    def layout_id(self) -> bytes:
        """Hash (32 bytes) of the layouts of both parts."""
        return hashlib.sha256(self.first.layout_id + self.last.layout_id).digest()

    @property
    def capacity(self) -> int:
        """Number of positions that fit in both parts."""
        return min(self.first.capacity, self.last.capacity)

    @property
    def layers(self) -> range:
        """The layers of both parts."""
        return range(self.first.layers.start, self.last.layers.stop)

    def _part(self, layer: int) -> Cache:
        """Return the part that holds a layer. Raises ValueError if neither does."""
        if layer not in self.layers:
            raise ValueError(f"layer {layer} is not in {self.layers}")
        return self.first if layer in self.first.layers else self.last

    def segment_bytes(self, layer: int, positions: int) -> list[int]:
        """Return the length of each piece of `segments`."""
        return self._part(layer).segment_bytes(layer, positions)

    def segments(self, layer: int, positions: int) -> Iterator[NDArray[np.uint8]]:
        """Yield keys and values of a layer to read; see `Cache.segments`."""
        return self._part(layer).segments(layer, positions)

    def writable_segments(self, layer: int, positions: int) -> AbstractContextManager[Iterator[NDArray[np.uint8]]]:
        """Return a context that yields keys and values of a layer to overwrite; see `Cache.writable_segments`."""
        return self._part(layer).writable_segments(layer, positions)

    def clear(self) -> None:
        """Zero all keys and values of both parts."""
        self.first.clear()
        self.last.clear()


class SplitDecoder:
    """Runs the first layers on one decoder and the others, with the head, on another. The activations cross once.

    The second decoder is the faster one: it then also computes the logits from the largest matrix of the model, while
    the first only looks up one row of the embedding for each token.

    Args:
        first: decoder of the layers from 0 on.
        last: decoder of the layers after those of `first`, up to the model's last.

    Raises:
        ValueError: the layers of both are not the whole model, each once, or the contexts differ.
    """

    def __init__(self, first: Decoder, last: Decoder) -> None:
        self.config = first.config
        if (first.layers.start, first.layers.stop, last.layers.stop) != (0, last.layers.start, self.config.num_layers):
            raise ValueError(f"{first.layers} and {last.layers} are not all layers of the model")
        if first.context != last.context:
            raise ValueError(f"the contexts differ: {first.context} and {last.context} tokens")
        self.first, self.last = first, last
        self.context, self.chunk = first.context, min(first.chunk, last.chunk)
        self.threads = max(first.threads, last.threads)
        self.exact_rows = min(first.exact_rows, last.exact_rows)
        self.layers = range(self.config.num_layers)

    def make_cache(self) -> SplitCache:
        """Return an empty cache for another conversation. Raises NotEnoughMemoryError."""
        return SplitCache(self.first.make_cache(), self.last.make_cache())

    def run(
        self,
        token_ids: NDArray[np.int64],
        position: int,
        logits_from: int,
        cache: Cache,
        cancelled: CancelCheck | None = None,
    ) -> NDArray[np.float32]:
        """Run the whole model on a chunk of tokens; see `Decoder.run`."""
        if not isinstance(cache, SplitCache):
            raise ValueError("the cache was made for another decoder")
        residual = self.first.embed(token_ids)
        self.run_layers(residual, 0, self.config.num_layers, position, cache, cancelled)
        wanted = max(0, len(token_ids) - logits_from)
        if not wanted:
            return cache.logits[:0]
        if len(cache.logits) < wanted:
            cache.logits = np.zeros((wanted, self.config.vocab_size), np.float32)
        cache.logits[:wanted] = self.last.head(residual, logits_from)
        return cache.logits[:wanted]

    def run_rows(
        self,
        token_ids: NDArray[np.int64],
        position: int,
        logits_from: int,
        cache: Cache,
        cancelled: CancelCheck | None = None,
    ) -> list[LogitRow]:
        """Run the whole model; return rows of logits; see `Decoder.run_rows`."""
        return [HostRow(row) for row in self.run(token_ids, position, logits_from, cache, cancelled)]

    def embed(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the residual stream before the first layer; see `Decoder.embed`."""
        return self.first.embed(token_ids)

    def run_layers(
        self,
        residual: NDArray[np.float32],
        first: int,
        last: int,
        position: int,
        cache: Cache,
        cancelled: CancelCheck | None = None,
    ) -> None:
        """Run some layers in place; see `Decoder.run_layers`."""
        if not isinstance(cache, SplitCache):
            raise ValueError("the cache was made for another decoder")
        if not 0 <= first <= last <= self.config.num_layers:
            raise ValueError(f"layers {first} to {last - 1} are not all in {self.layers}")
        border = self.last.layers.start
        result = residual.copy()  # A cancelled pass leaves the caller's as it was.
        if first < border:
            self.first.run_layers(result, first, min(last, border), position, cache.first, cancelled)
        if last > border:
            self.last.run_layers(result, max(first, border), last, position, cache.last, cancelled)
        residual[:] = result

    def head(self, residual: NDArray[np.float32], logits_from: int) -> NDArray[np.float32]:
        """Return logits of the residual stream after the last layer; see `Decoder.head`."""
        return self.last.head(residual, logits_from)

    def close(self) -> None:
        """Close both decoders."""
        try:
            self.first.close()
        finally:
            self.last.close()
