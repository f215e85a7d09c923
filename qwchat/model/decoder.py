"""What generation asks of a device: a decoder, and the KV cache of each conversation. Nothing here knows a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quant.model_config import ModelConfig

CancelCheck = Callable[[], bool]
"""Asked while a long pass runs; the pass ends early when it returns True."""


class PassCancelled(Exception):
    """A pass was stopped on its way: its keys and values are not in the cache."""


class Cache(Protocol):
    """The keys and values of one conversation, in the layout of the decoder that made it."""

    @property
    def config(self) -> ModelConfig:
        """The model's shapes."""

    @property
    def kind(self) -> str:
        """How numbers are stored, `f32` or `q8`."""

    @property
    def layout_id(self) -> bytes:
        """Hash (32 bytes) of everything besides the weights that the bytes of `segments` depend on."""

    @property
    def capacity(self) -> int:
        """Positions that fit."""

    @property
    def layers(self) -> range:
        """The model's layers whose keys and values are kept."""

    def segments(self, layer: int, positions: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the memory of a layer that the first `positions` positions take, in contiguous pieces.

        The pieces have the same lengths in every cache of the same `layout_id`, whatever its capacity.
        """

    def clear(self) -> None:
        """Zero all keys and values: a non-finite one must not outlive the run that wrote it."""


class Decoder(Protocol):
    """A model on a device: token ids in, logits out. It keeps nothing of a conversation; caches do.

    Caches of one decoder may be used in any order. Methods raise ValueError for tokens, positions, layers and caches
    that do not belong here.
    """

    @property
    def config(self) -> ModelConfig:
        """The model's shapes."""

    @property
    def context(self) -> int:
        """Positions of each cache that may be used."""

    @property
    def chunk(self) -> int:
        """The most tokens of one pass."""

    @property
    def threads(self) -> int:
        """Threads that compute."""

    @property
    def exact_grouping(self) -> bool:
        """Whether logits do not depend, bit for bit, on how tokens are grouped into passes."""

    @property
    def layers(self) -> range:
        """The model's layers that are loaded. The embedding is if the first one is, the head if the last one is."""

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
        """Run the whole model over up to `chunk` tokens at `position` and following; keep their keys and values.

        Returns:
            Logits (tokens - logits_from, vocab) f32 of the tokens from `logits_from` on: a view that the next run over
            the same cache overwrites.

        Raises:
            PassCancelled: `cancelled` returned True. Below `position` the cache is as it was.
        """

    def embed(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the residual stream (tokens, hidden) f32 before the first layer."""

    def run_layers(
        self,
        residual: NDArray[np.float32],
        first: int,
        last: int,
        position: int,
        cache: Cache,
        cancelled: CancelCheck | None = None,
    ) -> None:
        """Run the layers `first` to `last - 1` over `residual` (tokens, hidden) f32, in place.

        The tokens stand at `position` and following; keys and values of these layers are kept.

        Raises:
            PassCancelled: `cancelled` returned True. `residual` is unchanged, and below `position` the cache is.
        """

    def head(self, residual: NDArray[np.float32], logits_from: int) -> NDArray[np.float32]:
        """Return logits (tokens - logits_from, vocab) f32, a view that the next call overwrites.

        Args:
            residual: (tokens, hidden) f32, behind the last layer.
            logits_from: the first token whose logits are wanted.
        """

    def close(self) -> None:
        """End the threads; the decoder cannot be used afterwards."""
