"""The engine: token ids in, tokens out.  It knows no text.

It remembers which ids its KV cache holds, and reads only what differs from them: a follow-up, a retry or an edited
turn costs what is new in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.config import ModelConfig
from qwchat.cpu.decoder import CpuDecoder
from qwchat.cpu.kernels.cores import default_threads
from qwchat.cpu.kernels.records import KV_KINDS
from qwchat.cpu.weights import TensorSource
from qwchat.cpu.workspace import CHUNK
from qwchat.errors import NonFiniteLogitsError, PromptTooLongError, UsageError
from qwchat.events import EngineEvent
from qwchat.generation.mask import TokenMask
from qwchat.generation.run import Run, common_prefix
from qwchat.generation.sampling import Sampler
from qwchat.generation.speculation import Speculation
from qwchat.model import kv_file
from qwchat.request import Request

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
        raise UsageError(f"the context must be from 1 to {limit:,} tokens, the maximum of this model, not {asked:,}")
    return asked


def _threads(asked: int | None) -> int:
    if asked is None:
        return default_threads()
    if not 1 <= asked <= THREAD_LIMIT:
        raise UsageError(f"threads must be from 1 to {THREAD_LIMIT}, not {asked}")
    return asked


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
        self._model = CpuDecoder(folder, context=self.context, threads=_threads(threads), kv=kv)
        self._cache = self._model.make_cache()
        self._cached = np.zeros(self.context, np.int64)
        self._length = 0
        self._token_seconds = math.inf  # of the quickest pass so far, for each of its tokens
        self._ahead = 0  # positions behind these whose keys and values stand in the cache as well
        self.speculation = Speculation()

    @property
    def longest_context(self) -> int:
        """Positions that the model was made for."""
        return context_limit(self.config)

    @property
    def threads(self) -> int:
        """Threads that compute."""
        return self._model.threads

    @property
    def kv(self) -> str:
        """Kind of the KV cache, ``f32`` or ``q8``."""
        return self._cache.kind

    @property
    def cached_ids(self) -> NDArray[np.int64]:
        """The token ids whose keys and values the cache holds; a copy."""
        return self._cached[: self._length].copy()

    @property
    def length(self) -> int:
        """Positions that the cache holds."""
        return self._length

    @property
    def rereading_seconds(self) -> float:
        """What reading the cache's positions again would take at the best speed so far; 0 where nothing was read."""
        return self._length * self._token_seconds if math.isfinite(self._token_seconds) else 0.0

    def held(self, token_ids: Sequence[int]) -> int:
        """How many of the first ``token_ids`` the cache holds."""
        return common_prefix(self._cached[: self._length], np.asarray(token_ids, np.int64))

    def truncate(self, length: int) -> None:
        """Forgets all positions from ``length`` on."""
        self._ahead = 0
        self._length = max(0, min(self._length, length))

    def read(
        self,
        ids: NDArray[np.int64],
        logits_from: int,
        kept: int | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> NDArray[np.float32]:
        """Appends ``ids``, at most CHUNK and no more than fit, to the cache.

        Only the first ``kept`` of them (all if not given) count as read; advance() takes in the others.  Returns logits
        (tokens - logits_from, vocab) f32 of those from ``logits_from`` on, a view that the next call overwrites.
        ``cancelled``: asked while a long pass runs.  Raises PassCancelled when it returns True, and then as with any
        exception none of ``ids`` is in the cache.
        """
        self._ahead = 0
        started = time.perf_counter()
        logits = self._model.run(ids, self._length, logits_from, self._cache, cancelled)
        self._token_seconds = min(self._token_seconds, (time.perf_counter() - started) / len(ids))
        self._cached[self._length : self._length + len(ids)] = ids
        kept = len(ids) if kept is None else kept
        self._length += kept
        self._ahead = len(ids) - kept
        return logits

    def advance(self, token: int) -> bool:
        """Takes ``token`` into the cache if it was read ahead as the next one; whether it was."""
        if not self._ahead or self._cached[self._length] != token:
            return False
        self._length += 1
        self._ahead -= 1
        return True

    def extend(self, token_ids: Sequence[int], chunk: int = CHUNK) -> NDArray[np.float32]:
        """Appends ``token_ids`` to the cache, ``chunk`` at a time; logits (tokens, vocab) f32 of each.

        Raises PromptTooLongError if they do not fit.
        """
        ids = np.asarray(token_ids, np.int64)
        if self._length + len(ids) > self.context:
            raise PromptTooLongError(self._length + len(ids), self.context, self.longest_context)
        logits = np.empty((len(ids), self.config.vocab_size), np.float32)
        for start in range(0, len(ids), min(chunk, CHUNK)):
            piece = ids[start : start + min(chunk, CHUNK)]
            # Nothing asks to stop, but KeyboardInterrupt ends a long pass.
            logits[start : start + len(piece)] = self.read(piece, 0, cancelled=lambda: False)
        return logits

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits (tokens, vocab) f32 of every position of a text that starts the context."""
        self.truncate(0)
        return self.extend(token_ids)

    def generate(
        self,
        token_ids: Sequence[int],
        request: Request,
        *,
        usable_vocab: int,
        stop_ids: frozenset[int] = frozenset(),
        cancel: Callable[[], bool] | None = None,
        continued: int = 0,
        mask: TokenMask | None = None,
    ) -> Iterator[EngineEvent]:
        """Evaluate the prompt, without the positions that the cache holds already, then generate.

        The cache is consistent whenever control is outside, so the iterator may be dropped at any time.

        Args:
            token_ids: the prompt.
            request: how to generate. `speculate` evaluates draft tokens together with the newest token
                (`qwchat.generation.run`), `loop_guard` counts as in `qwchat.generation.repetition`.
            usable_vocab: ids from here on are padding and never chosen.
            stop_ids: tokens that end the reply; no Step reports them.
            cancel: asked between tokens and chunks, and during a long pass, which ends early when it returns True.
            continued: how many of the last `token_ids` are a reply that was cut, which continues as if it had not
                been: penalties and the draws of the seed count them, `max_tokens` does not.
            mask: only what it allows is chosen, and the reply ends where nothing can follow. Its state is the one
                after the `continued` tokens.

        Yields:
            Prefilled after every chunk, Step for every token but the stop token, and Finished at the end.

        Raises:
            PromptTooLongError, NonFiniteLogitsError, ConstraintError.
            UsageError: the prompt is empty.
        """
        ids = np.asarray(token_ids, np.int64)
        if len(ids) == 0:
            raise UsageError("the prompt is empty: there is nothing to answer")
        if len(ids) > self.context:
            raise PromptTooLongError(len(ids), self.context, self.longest_context)
        sampler = Sampler(request.settings, request.seed, min(usable_vocab, self.config.vocab_size), continued)
        run = Run(self, ids, request, sampler, stop_ids=stop_ids, cancel=cancel, continued=continued, mask=mask)
        try:
            yield from run.events()
        except NonFiniteLogitsError:
            self.truncate(0)
            self._cache.clear()
            raise

    def adopt(self, other: Engine) -> int:
        """Takes over what the cache of ``other``, an engine of the same model, holds; how many positions.

        Those that have room here, and none where the caches are of different kinds.
        """
        mine, its = self._cache, other._cache
        if mine.kind != its.kind:
            return 0
        count = min(other._length, self.context)
        for layer in range(self.config.num_layers):
            for row, its_row in zip(mine.rows(layer, count), its.rows(layer, count), strict=True):
                row[:] = its_row
        self._cached[:count] = other._cached[:count]
        self._length, self._token_seconds = count, other._token_seconds
        return count

    def save(self, path: Path, fingerprint: str) -> int:
        """Writes what the cache holds to ``path`` (see :mod:`qwchat.model.kv_file`); the size in bytes.

        ``fingerprint``: the model's.  Raises SnapshotError where it cannot be written.
        """
        return kv_file.save(path, self._cache, self._cached[: self._length], fingerprint)

    def snapshot_bytes(self) -> int:
        """Size of the file that save() would make."""
        return kv_file.file_bytes(self._cache, self._length)

    def restore(self, path: Path, fingerprint: str) -> int:
        """Fills the cache from what save() wrote, in place of what it holds; how many positions.

        Raises FileNotFoundError, and SnapshotError where the file cannot be used: the cache is empty then.
        """
        held, self._length, self._ahead = self._length, 0, 0
        try:
            ids = kv_file.restore(path, self._cache, self.context, fingerprint, self.threads)
        except FileNotFoundError:
            self._length = held
            raise
        self._cached[: len(ids)] = ids
        self._length = len(ids)
        return self._length

    def close(self) -> None:
        """Ends the threads; the engine cannot be used afterwards."""
        self._model.close()
