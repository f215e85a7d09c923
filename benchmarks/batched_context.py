"""Prefill, decode and a filled cache over the low-level bindings of llama.cpp or of a fork, one ctypes call per batch.

Python costs the library nothing that way.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.llama_state import StateFormatError, StateLayout, repeat_state

FILL_BLOCK = 64  # positions that are computed and then copied to fill the cache


class BatchedContext:
    """KV cache of one sequence. Subclasses cut, save and load the cache, which differ between the libraries."""

    layout: StateLayout

    def __init__(self, library: Any, context: Any, ubatch: int) -> None:
        """Take over an open context.

        Args:
            library: module or object with the functions of llama.h.
            context: handle of the context.
            ubatch: tokens of one call.
        """
        self._library, self._context, self._ubatch = library, context, ubatch
        self._batch = library.llama_batch_init(ubatch, 0, 1)
        self._length = 0

    def close(self) -> None:
        """Free the memory of the context."""
        self._library.llama_batch_free(self._batch)
        self._library.llama_free(self._context)

    def prefill(self, tokens: Sequence[int]) -> float:
        """Return the seconds from the empty cache to the logits of the last of `tokens`."""
        self._truncate(0)
        return self._read(tokens)

    def decode(self, depth: int, count: int) -> float:
        """Return the seconds of `count` steps behind `depth` cached positions and one warm-up step."""
        self._truncate(depth)
        self._read([0])
        return sum(self._read([0]) for _ in range(count))

    def fill(self, tokens: Sequence[int]) -> bool:
        """Fill the cache with `len(tokens)` positions. Return True if copies of the first positions were enough.

        How long attention takes does not depend on the values of keys and values, and computing 16,384 positions takes
        minutes. So one block of positions is computed, saved, repeated in the saved form, and loaded again.
        """
        self.prefill(tokens[:FILL_BLOCK])
        if len(tokens) <= FILL_BLOCK:
            return True
        try:
            if self._load(repeat_state(self._save(), len(tokens), self.layout)):
                self._length = len(tokens)
                return True
        except StateFormatError:
            pass  # Another version of the library: evaluate all tokens below.
        self.prefill(tokens)
        return False

    def _read(self, tokens: Sequence[int]) -> float:
        """Append `tokens` and compute the logits of the last one. Return the seconds that it took."""
        started = time.perf_counter()
        batch = self._batch
        for start in range(0, len(tokens), self._ubatch):
            piece = tokens[start : start + self._ubatch]
            for index, token in enumerate(piece):
                batch.token[index], batch.pos[index] = token, self._length + index
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
                batch.logits[index] = 0
            batch.logits[len(piece) - 1] = start + len(piece) == len(tokens)
            batch.n_tokens = len(piece)
            if status := self._library.llama_decode(self._context, batch):
                raise RuntimeError(f"llama_decode gave {status} at position {self._length}")
            self._length += len(piece)
        self._library.llama_synchronize(self._context)
        return time.perf_counter() - started

    def _truncate(self, length: int) -> None:
        """Cut the cache back to `length` positions. Raises RuntimeError if the library refuses."""
        raise NotImplementedError

    def _save(self) -> bytes:
        """Return the saved state of the sequence."""
        raise NotImplementedError

    def _load(self, state: bytes) -> bool:
        """Replace the sequence by a saved state. Return False if the library refuses it."""
        raise NotImplementedError
