"""Protocols between generation and a device: a decoder, and the KV cache of each conversation.

Nothing here knows a device. `qwchat.cpu.decoder.CpuDecoder` and `qwchat.cpu.kv_cache.KVCache` implement the protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quant.model_config import ModelConfig
from qwchat.model.logit_rows import LogitRow

CancelCheck = Callable[[], bool]
"""Called during a long pass, which ends early when it returns True."""


class PassCancelled(Exception):
    """A pass was cancelled before its end: the keys and values of its tokens are not in the cache."""


class Cache(Protocol):
    """KV cache of one conversation, in the layout of the decoder that made it."""

    @property
    def config(self) -> ModelConfig:
        """The model's shapes."""

    @property
    def kind(self) -> str:
        """Format of the numbers, `f32` or `q8`."""

    @property
    def layout_id(self) -> bytes:
        """Hash (32 bytes) of everything except the weights that the bytes of `segments` depend on."""

    @property
    def capacity(self) -> int:
        """Number of positions that fit."""

    @property
    def layers(self) -> range:
        """The model's layers whose keys and values are kept."""

    def segment_bytes(self, layer: int, positions: int) -> list[int]:
        """Return the length of each piece of `segments`.

        It is the same in every cache of the same `layout_id`, whatever its capacity.
        """

    def segments(self, layer: int, positions: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the keys and values of the first `positions` positions of a layer, in contiguous pieces, to read.

        A piece is valid until the next one: a device copies it from its own memory.
        """

    def writable_segments(self, layer: int, positions: int) -> AbstractContextManager[Iterator[NDArray[np.uint8]]]:
        """Return a context whose value yields the pieces of `segments` to overwrite, all of them, in order.

        The cache holds the new keys and values when the context ends without an exception. Several threads may each
        write a layer of their own.
        """

    def clear(self) -> None:
        """Zero all keys and values, so that a non-finite number in them cannot be read by a later reply."""


class Decoder(Protocol):
    """A model on a device: token ids in, logits out.

    A decoder stores nothing about a conversation; caches do. The caches of one decoder may be used in any order.
    Methods raise ValueError for tokens, positions, layers and caches that do not fit the decoder.
    """

    @property
    def config(self) -> ModelConfig:
        """The model's shapes."""

    @property
    def context(self) -> int:
        """Number of positions of each cache that may be used."""

    @property
    def chunk(self) -> int:
        """Largest number of tokens in one pass."""

    @property
    def threads(self) -> int:
        """Number of threads that compute."""

    @property
    def exact_rows(self) -> int:
        """Largest number of tokens of a pass that give the logits of passes of one token each, bit for bit.

        Draft tokens are evaluated in passes of up to that many tokens. If it is `chunk`, logits do not depend on how
        tokens are grouped into passes.
        """

    @property
    def layers(self) -> range:
        """The model's layers that are loaded. The first one brings the embedding, the last one the head."""

    def make_cache(self) -> Cache:
        """Return an empty cache for another conversation. Raises NotEnoughMemoryError."""

    def run(
        self,
        token_ids: NDArray[np.int64],
        position: int,
        logits_from: int,
        cache: Cache,
        cancelled: CancelCheck | None = None,
    ) -> NDArray[np.float32]:
        """Run the whole model on some tokens, and keep their keys and values.

        Args:
            token_ids: (tokens,) i64, at most `chunk`.
            position: position of the first token.
            logits_from: first token whose logits are wanted; `tokens` for none.
            cache: a cache of this decoder; positions below `position` are read.
            cancelled: called during a long pass, which ends early when it returns True.

        Returns:
            Logits (tokens - logits_from, vocab) f32: a view that the next run on the same cache overwrites.

        Raises:
            PassCancelled: `cancelled` returned True. Below `position` the cache is unchanged.
        """

    def run_rows(
        self,
        token_ids: NDArray[np.int64],
        position: int,
        logits_from: int,
        cache: Cache,
        cancelled: CancelCheck | None = None,
    ) -> list[LogitRow]:
        """Run the whole model as `run` does; return a row of logits for each token from `logits_from` on."""

    def embed(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the embeddings of some tokens, the residual stream (tokens, hidden) f32 before the first layer."""

    def run_layers(
        self,
        residual: NDArray[np.float32],
        first: int,
        last: int,
        position: int,
        cache: Cache,
        cancelled: CancelCheck | None = None,
    ) -> None:
        """Run the layers `first` to `last - 1` in place, and keep their keys and values.

        Args:
            residual: (tokens, hidden) f32, overwritten with the residual stream after layer `last - 1`.
            first: first layer.
            last: one past the last layer.
            position: position of the first token.
            cache: a cache of this decoder.
            cancelled: as for `run`.

        Raises:
            PassCancelled: `cancelled` returned True. `residual` is unchanged, and so is the cache below `position`.
        """

    def head(self, residual: NDArray[np.float32], logits_from: int) -> NDArray[np.float32]:
        """Return logits (tokens - logits_from, vocab) f32: a view that the next call overwrites.

        Args:
            residual: (tokens, hidden) f32 after the last layer.
            logits_from: first token whose logits are wanted.
        """

    def close(self) -> None:
        """End the threads. The decoder cannot be used afterwards."""
