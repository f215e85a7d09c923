"""The engine: token ids in, tokens out.  It knows no text.

It remembers which ids its KV cache holds, and reads only what differs from them: a follow-up, a retry or an edited
turn costs what is new in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from quant.config import ModelConfig
from qwchat.errors import NonFiniteLogitsError, PromptTooLongError, UsageError
from qwchat.events import EngineEvent, Finished, FinishReason, Prefilled, Stats, Step
from qwchat.kernels.cores import default_threads
from qwchat.kernels.records import KV_KINDS
from qwchat.model.qwen2 import CHUNK, Qwen2
from qwchat.model.weights import TensorSource
from qwchat.sampling import Sampler, SamplingSettings

DEFAULT_CONTEXT = 4096
THREAD_LIMIT = 256


def context_limit(config: ModelConfig) -> int:
    """Positions that the model was made for: with YaRN, its factor times the original length."""
    yarn = config.rope_scaling
    if yarn is None:
        return config.max_position_embeddings
    return max(config.max_position_embeddings, int(yarn.factor * yarn.original_max_position_embeddings))


def _context(config: ModelConfig, asked: int | None) -> int:
    limit = context_limit(config)
    if asked is None:
        return min(limit, DEFAULT_CONTEXT)
    if not 1 <= asked <= limit:
        raise UsageError(f"--ctx must be from 1 to {limit}, what this model was made for; got {asked}")
    return asked


def _threads(asked: int | None) -> int:
    if asked is None:
        return default_threads()
    if not 1 <= asked <= THREAD_LIMIT:
        raise UsageError(f"--threads must be from 1 to {THREAD_LIMIT}; got {asked}")
    return asked


def _common_prefix(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


class Engine:
    """A model ready to generate.

    ``context``: positions of the KV cache, the model's length (at most DEFAULT_CONTEXT) if not given; ``threads``: by
    default the physical cores.  Raises UsageError for values out of range, ModelError and NotEnoughMemoryError.
    """

    def __init__(
        self,
        folder: TensorSource,
        *,
        threads: int | None = None,
        context: int | None = None,
        device: str = "auto",
        kv: str = "auto",
    ) -> None:
        if device not in ("auto", "cpu"):
            raise UsageError(f"--device {device}: this version runs on the CPU only; use auto or cpu")
        if kv not in ("auto", *KV_KINDS):
            raise UsageError(f"--kv {kv}: there is no such KV cache; use auto, {' or '.join(KV_KINDS)}")
        self.config = folder.config
        self.context = _context(folder.config, context)
        self._model = Qwen2(folder, context=self.context, threads=_threads(threads), kv=kv)
        self._cached = np.zeros(self.context, np.int64)
        self._length = 0

    @property
    def threads(self) -> int:
        """Threads that compute."""
        return self._model.threads

    @property
    def cached_ids(self) -> NDArray[np.int64]:
        """The token ids whose keys and values the cache holds; a copy."""
        return self._cached[: self._length].copy()

    def truncate(self, length: int) -> None:
        """Forgets all positions from ``length`` on."""
        self._length = max(0, min(self._length, length))

    def _read(self, ids: NDArray[np.int64], logits_from: int) -> NDArray[np.float32]:
        logits = self._model.run(ids, self._length, logits_from)
        self._cached[self._length : self._length + len(ids)] = ids
        self._length += len(ids)
        return logits

    def extend(self, token_ids: Sequence[int], chunk: int = CHUNK) -> NDArray[np.float32]:
        """Appends ``token_ids`` to the cache, ``chunk`` at a time; logits (tokens, vocab) f32 of each.

        Raises PromptTooLongError if they do not fit.
        """
        ids = np.asarray(token_ids, np.int64)
        if self._length + len(ids) > self.context:
            raise PromptTooLongError(self._length + len(ids), self.context)
        logits = np.empty((len(ids), self.config.vocab_size), np.float32)
        for start in range(0, len(ids), min(chunk, CHUNK)):
            piece = ids[start : start + min(chunk, CHUNK)]
            logits[start : start + len(piece)] = self._read(piece, 0)
        return logits

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits (tokens, vocab) f32 of every position of a text that starts the context."""
        self.truncate(0)
        return self.extend(token_ids)

    def generate(
        self,
        token_ids: Sequence[int],
        settings: SamplingSettings,
        *,
        seed: int,
        usable_vocab: int,
        max_tokens: int | None = None,
        stop_ids: frozenset[int] = frozenset(),
        cancel: Callable[[], bool] | None = None,
    ) -> Iterator[EngineEvent]:
        """Reads ``token_ids`` (what the cache holds of them is not read again), then generates.

        Yields Prefilled after every chunk, Step for every token but the stop token, and Finished at the end.  The
        cache is consistent whenever control is outside, so the iterator may be dropped at any time.
        ``usable_vocab``: ids from here on are padding and never chosen.  ``cancel`` is asked between tokens and chunks.
        Raises PromptTooLongError, UsageError (an empty prompt), NonFiniteLogitsError.
        """
        ids = np.asarray(token_ids, np.int64)
        if len(ids) == 0:
            raise UsageError("the prompt is empty: there is nothing to answer")
        if len(ids) > self.context:
            raise PromptTooLongError(len(ids), self.context)
        sampler = Sampler(settings, seed, min(usable_vocab, self.config.vocab_size))
        stopped = cancel or (lambda: False)
        run = _Run(self, ids, sampler, stop_ids, max_tokens, stopped)
        try:
            yield from run.events()
        except NonFiniteLogitsError:
            self.truncate(0)
            self._model.clear()
            raise

    def close(self) -> None:
        """Ends the threads; the engine cannot be used afterwards."""
        self._model.close()


class _Run:
    """One generation: its clock, its tokens, and why it ends."""

    def __init__(
        self,
        engine: Engine,
        ids: NDArray[np.int64],
        sampler: Sampler,
        stop_ids: frozenset[int],
        max_tokens: int | None,
        stopped: Callable[[], bool],
    ) -> None:
        self._engine, self._ids, self._sampler = engine, ids, sampler
        self._stop_ids, self._max_tokens, self._stopped = stop_ids, max_tokens, stopped
        # The last token is always read again: its logits are needed.
        self._reused = min(_common_prefix(engine.cached_ids, ids), len(ids) - 1)
        engine.truncate(self._reused)
        self._generated: list[int] = []
        self._start = time.perf_counter()
        self._prefilled = self._first = self._last = 0.0

    def _clock(self) -> float:
        return time.perf_counter() - self._start

    def events(self) -> Iterator[EngineEvent]:
        logits = None
        for start in range(self._reused, len(self._ids), CHUNK):
            if self._stopped():
                break
            piece = self._ids[start : start + CHUNK]
            last = start + len(piece) == len(self._ids)
            logits = self._engine._read(piece, len(piece) - 1 if last else len(piece))
            self._prefilled = self._clock()
            yield Prefilled(start + len(piece), len(self._ids), self._reused)
        reason: FinishReason = "cancelled"
        if logits is not None and len(logits):
            reason = yield from self._decode(logits[0])
        yield Finished(reason, self._stats())

    def _decode(self, logits: NDArray[np.float32]) -> Generator[EngineEvent, None, FinishReason]:
        while True:
            if end := self._end():
                return end
            token = self._sampler.sample(logits, self._ids, self._generated)
            self._last = self._clock()
            self._first = self._first or self._last
            if token in self._stop_ids:
                return "stop"
            self._generated.append(token)
            yield Step(token)
            if end := self._end():
                return end
            if self._engine._length == self._engine.context:
                return "context"
            logits = self._engine._read(np.array([token], np.int64), 0)[0]

    def _end(self) -> FinishReason | None:
        if self._stopped():
            return "cancelled"
        return "length" if self._max_tokens is not None and len(self._generated) >= self._max_tokens else None

    def _stats(self) -> Stats:
        first = self._first or self._prefilled
        return Stats(
            prompt_tokens=len(self._ids),
            cached_tokens=self._reused,
            generated_tokens=len(self._generated),
            prefill_seconds=self._prefilled,
            decode_seconds=max(0.0, self._last - first),
            time_to_first_token=first,
            context=self._engine.context,
        )
