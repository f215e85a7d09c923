"""A conversation as the decoder sees it: the token ids whose keys and values are cached, and passes that add to them.

A context is evaluated once: a follow-up, a retry or an edited turn costs only the tokens that differ.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwchat.errors import PromptTooLongError
from qwchat.model import kv_file
from qwchat.model.context_limits import context_limit
from qwchat.model.decoder import Decoder


def common_prefix(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Return how many of the first elements of two vectors are equal."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


class CachedContext:
    """The cached tokens of one conversation. Several may take turns on one decoder, pass by pass.

    Attributes:
        decoder: what evaluates the tokens.
        cache: their keys and values.

    Raises:
        NotEnoughMemoryError: there is not enough memory for another cache.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.cache = decoder.make_cache()
        self._ids = np.zeros(decoder.context, np.int64)
        self._length = 0
        self._drafts = 0  # positions behind these whose keys and values stand in the cache as well
        self._token_seconds = math.inf  # of the quickest pass so far, for each of its tokens

    @property
    def ids(self) -> NDArray[np.int64]:
        """The cached token ids (positions,) i64; a copy."""
        return self._ids[: self._length].copy()

    @property
    def length(self) -> int:
        """Cached positions."""
        return self._length

    @property
    def reevaluation_seconds(self) -> float:
        """What evaluating the cached tokens again would take at the best speed so far; 0 where nothing was timed."""
        return self._length * self._token_seconds if math.isfinite(self._token_seconds) else 0.0

    def count_cached(self, token_ids: Sequence[int] | NDArray[np.int64]) -> int:
        """Return how many of the first `token_ids` are cached."""
        return common_prefix(self._ids[: self._length], np.asarray(token_ids, np.int64))

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on."""
        self._drafts = 0
        self._length = max(0, min(self._length, length))

    def clear(self) -> None:
        """Forget everything and zero the cache, so that a non-finite number in it cannot be read again."""
        self.truncate(0)
        self.cache.clear()

    def evaluate(
        self,
        ids: NDArray[np.int64],
        logits_from: int,
        accepted: int | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> NDArray[np.float32]:
        """Evaluate `ids`, at most a chunk of the decoder and no more than fit, behind the cached tokens.

        Args:
            ids: (tokens,) i64.
            logits_from: the first of them whose logits are wanted.
            accepted: how many of them join the cached tokens, all if not given; `accept` takes the others one by one.
            cancelled: asked while a long pass runs.

        Returns:
            Logits (tokens - logits_from, vocab) f32, a view that the next call overwrites.

        Raises:
            PassCancelled: `cancelled` returned True. As with any exception, none of `ids` is cached then.
        """
        self._drafts = 0
        started = time.perf_counter()
        logits = self.decoder.run(ids, self._length, logits_from, self.cache, cancelled)
        self._token_seconds = min(self._token_seconds, (time.perf_counter() - started) / len(ids))
        self._ids[self._length : self._length + len(ids)] = ids
        accepted = len(ids) if accepted is None else accepted
        self._length += accepted
        self._drafts = len(ids) - accepted
        return logits

    def accept(self, token: int) -> bool:
        """Accept `token` if it was evaluated as the next one. Return whether it was."""
        if not self._drafts or self._ids[self._length] != token:
            return False
        self._length += 1
        self._drafts -= 1
        return True

    def extend(self, token_ids: Sequence[int], chunk: int | None = None) -> NDArray[np.float32]:
        """Evaluate `token_ids` behind the cached ones, `chunk` at a time; return logits (tokens, vocab) f32 of each.

        Raises PromptTooLongError if they do not fit.
        """
        ids = np.asarray(token_ids, np.int64)
        config, context = self.decoder.config, self.decoder.context
        if self._length + len(ids) > context:
            raise PromptTooLongError(self._length + len(ids), context, context_limit(config))
        size = self.decoder.chunk if chunk is None else min(chunk, self.decoder.chunk)
        logits = np.empty((len(ids), config.vocab_size), np.float32)
        for start in range(0, len(ids), size):
            piece = ids[start : start + size]
            # Nothing asks to stop, but KeyboardInterrupt ends a long pass.
            logits[start : start + len(piece)] = self.evaluate(piece, 0, cancelled=lambda: False)
        return logits

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return logits (tokens, vocab) f32 of every position of a text that starts the context."""
        self.truncate(0)
        return self.extend(token_ids)

    def copy_from(self, other: CachedContext) -> int:
        """Copy what `other`, a context of the same model, has cached; return how many positions.

        They are those that fit here, and none where the caches have different layouts.
        """
        if self.cache.layout_id != other.cache.layout_id:
            return 0
        count = min(other._length, self.decoder.context)
        for layer in self.cache.layers:
            for row, its_row in zip(self.cache.segments(layer, count), other.cache.segments(layer, count), strict=True):
                row[:] = its_row
        self._ids[:count] = other._ids[:count]
        self._length, self._drafts, self._token_seconds = count, 0, other._token_seconds
        return count

    def save(self, path: Path, fingerprint: str) -> int:
        """Write the cache to `path` (see :mod:`qwchat.model.kv_file`); return the size in bytes.

        `fingerprint`: the model's. Raises SnapshotError where `path` cannot be written.
        """
        return kv_file.save(path, self.cache, self._ids[: self._length], fingerprint)

    def snapshot_bytes(self) -> int:
        """Return the size of the file that `save` would write."""
        return kv_file.file_bytes(self.cache, self._length)

    def restore(self, path: Path, fingerprint: str) -> int:
        """Fill the cache from what `save` wrote, in place of what it holds; return how many positions.

        Raises FileNotFoundError, and SnapshotError where the file cannot be used: nothing is cached then.
        """
        held, self._length, self._drafts = self._length, 0, 0
        try:
            ids = kv_file.restore(path, self.cache, self.decoder.context, fingerprint, self.decoder.threads)
        except FileNotFoundError:
            self._length = held
            raise
        self._ids[: len(ids)] = ids
        self._length = len(ids)
        return self._length
