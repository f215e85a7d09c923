"""The context of one conversation: the token ids whose keys and values are cached, and passes that add to them.

Each token is evaluated once: a follow-up, a retry or an edited turn costs only the tokens that differ.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qwchat.errors import PromptTooLongError
from qwchat.model import kv_file
from qwchat.model.context_limits import context_limit
from qwchat.model.decoder import Decoder
from qwchat.model.logit_rows import LogitRow

Logits = TypeVar("Logits")


def common_prefix(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Return the length of the common prefix of two vectors."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


class CachedContext:
    """Cached tokens of one conversation. Several contexts may take turns on one decoder, pass by pass.

    Attributes:
        decoder: evaluates the tokens.
        cache: the keys and values of the cached tokens.

    Raises:
        NotEnoughMemoryError: there is not enough memory for another cache.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.cache = decoder.make_cache()
        self._ids = np.zeros(decoder.context, np.int64)
        self._length = 0
        self._drafts = 0  # draft tokens after these, whose keys and values are in the cache as well
        self._token_seconds = math.inf  # seconds per token of the fastest pass so far

    @property
    def ids(self) -> NDArray[np.int64]:
        """A copy of the cached token ids, (positions,) i64."""
        return self._ids[: self._length].copy()

    @property
    def length(self) -> int:
        """Number of cached positions."""
        return self._length

    @property
    def reevaluation_seconds(self) -> float:
        """Time to evaluate the cached tokens again at the best speed so far; 0 if no pass was timed."""
        return self._length * self._token_seconds if math.isfinite(self._token_seconds) else 0.0

    def count_cached(self, token_ids: Sequence[int] | NDArray[np.int64]) -> int:
        """Return how many of the first `token_ids` are cached."""
        return common_prefix(self._ids[: self._length], np.asarray(token_ids, np.int64))

    def truncate(self, length: int) -> None:
        """Drop all positions from `length` on."""
        self._drafts = 0
        self._length = max(0, min(self._length, length))

    def clear(self) -> None:
        """Drop all positions and zero the cache, so that a non-finite number in it cannot be read again."""
        self.truncate(0)
        self.cache.clear()

    def evaluate(
        self,
        ids: NDArray[np.int64],
        logits_from: int,
        accepted: int | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[LogitRow]:
        """Evaluate tokens after the cached ones: at most one chunk of the decoder, and not more than fit.

        Args:
            ids: (tokens,) i64.
            logits_from: first token whose logits are wanted.
            accepted: how many of `ids` become cached tokens, by default all. The others are drafts, which `accept` adds
                one by one.
            cancelled: called during a long pass, which ends early when it returns True.

        Returns:
            A row of logits for each token from `logits_from` on; the next call overwrites them.

        Raises:
            PassCancelled: `cancelled` returned True. As after any exception, none of `ids` is cached.
        """
        return self._pass(
            self.decoder.run_rows, ids, logits_from, len(ids) if accepted is None else accepted, cancelled
        )

    def _pass(
        self,
        run: Callable[..., Logits],
        ids: NDArray[np.int64],
        logits_from: int,
        accepted: int,
        cancelled: Callable[[], bool] | None,
    ) -> Logits:
        """Run a method of the decoder, `run` or `run_rows`, on tokens after the cached ones; see `evaluate`."""
        self._drafts = 0
        started = time.perf_counter()
        logits = run(ids, self._length, logits_from, self.cache, cancelled)
        self._token_seconds = min(self._token_seconds, (time.perf_counter() - started) / len(ids))
        self._ids[self._length : self._length + len(ids)] = ids
        self._length += accepted
        self._drafts = len(ids) - accepted
        return logits

    def accept(self, token: int) -> bool:
        """Accept `token` if it was already evaluated as the next draft token. Return True if so."""
        if not self._drafts or self._ids[self._length] != token:
            return False
        self._length += 1
        self._drafts -= 1
        return True

    def extend(self, token_ids: Sequence[int], chunk: int | None = None) -> NDArray[np.float32]:
        """Evaluate tokens after the cached ones, pass by pass.

        Args:
            token_ids: any number of tokens that fit.
            chunk: tokens in each pass, by default the decoder's `chunk`.

        Returns:
            Logits (tokens, vocab) f32.

        Raises:
            PromptTooLongError: the tokens do not fit.
        """
        ids = np.asarray(token_ids, np.int64)
        config, context = self.decoder.config, self.decoder.context
        if self._length + len(ids) > context:
            raise PromptTooLongError(self._length + len(ids), context, context_limit(config))
        size = self.decoder.chunk if chunk is None else min(chunk, self.decoder.chunk)
        logits = np.empty((len(ids), config.vocab_size), np.float32)
        for start in range(0, len(ids), size):
            piece = ids[start : start + size]
            # It never cancels, but lets KeyboardInterrupt end a long pass.
            found = self._pass(self.decoder.run, piece, 0, len(piece), lambda: False)
            logits[start : start + len(piece)] = found
        return logits

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return logits (tokens, vocab) f32 of a text that starts at position 0."""
        self.truncate(0)
        return self.extend(token_ids)

    def copy_from(self, other: CachedContext, positions: int | None = None) -> int:
        """Copy cached tokens of `other`, a context of the same model; return the number of positions.

        The first `positions` are copied, by default all, as far as they fit here. None are copied if the caches have
        different layouts.
        """
        if self.cache.layout_id != other.cache.layout_id:
            return 0
        count = min(other._length, self.decoder.context)
        count = count if positions is None else min(count, positions)
        for layer in self.cache.layers:
            with self.cache.writable_segments(layer, count) as rows:
                for row, other_row in zip(rows, other.cache.segments(layer, count), strict=True):
                    row[:] = other_row
        self._ids[:count] = other._ids[:count]
        self._length, self._drafts, self._token_seconds = count, 0, other._token_seconds
        return count

    def save(self, path: Path, fingerprint: str) -> int:
        """Write the cache to `path` (see `qwchat.model.kv_file`); return the size in bytes.

        `fingerprint` is the model's. Raises SnapshotError if the file cannot be written.
        """
        return kv_file.save(path, self.cache, self._ids[: self._length], fingerprint)

    def snapshot_bytes(self) -> int:
        """Return the size of the file that `save` would write."""
        return kv_file.file_bytes(self.cache, self._length)

    def restore(self, path: Path, fingerprint: str) -> int:
        """Replace the cached tokens by those of a file from `save`; return the number of positions.

        `fingerprint` is the model's. Raises FileNotFoundError, and SnapshotError if the file cannot be used: then
        nothing is cached.
        """
        previous_length, self._length, self._drafts = self._length, 0, 0
        try:
            ids = kv_file.restore(path, self.cache, self.decoder.context, fingerprint, self.decoder.threads)
        except FileNotFoundError:
            self._length = previous_length
            raise
        self._ids[: len(ids)] = ids
        self._length = len(ids)
        return self._length
