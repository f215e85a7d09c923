"""The Qwen2 decoder: its memory, and the team that runs :mod:`qwchat.cpu.forward` over a chunk of tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwchat.cpu.cache import KVCache, choose_kind
from qwchat.cpu.kernels.cores import DecodeThreads
from qwchat.cpu.kernels.records import (
    ATTENTION_SCRATCH_BYTES,
    BLOCK,
    FEW_TOKENS,
    NORMS_ALONE,
    PARTIAL_HEADER,
    ROWS,
    SLOTS,
    SLOTS_BLOCK,
    SPLIT,
    TOKENS_PER_ITEM,
    matmul_scratch_bytes,
)
from qwchat.cpu.kernels.threads import Team
from qwchat.cpu.plan import LAYER, STATE
from qwchat.cpu.program import load_program
from qwchat.cpu.weights import TensorSource, Weights
from qwchat.errors import ModelError, NotEnoughMemoryError
from qwchat.model.rope import rope_tables

CHUNK = 128  # tokens per compiled call
_WATCHED_SECONDS = 0.05  # A pass that takes as long can be cancelled; that costs about 0.1 ms.


class PassCancelled(Exception):
    """A pass was stopped on its way: its keys and values are not in the cache."""


class Qwen2:
    """A model, its KV cache and its threads.  Token ids in, logits out.

    ``context``: positions that the cache holds.  ``kv``: its kind, see :func:`qwchat.cpu.cache.choose_kind`.
    ``threads``: members of the team, the caller included.
    Raises ModelError for shapes that the kernels cannot run, NotEnoughMemoryError.
    """

    def __init__(self, folder: TensorSource, *, context: int, threads: int, kv: str = "auto") -> None:
        self.config = folder.config
        self.context = context
        _check_shapes(folder)
        self._weights = Weights(folder)
        self._memory: list[NDArray[Any]] = []
        try:
            self.cache = KVCache(self.config, context, choose_kind(kv, self.config, context))
            self._states = np.zeros(1, STATE)
            self._layers = np.zeros(self.config.num_layers, LAYER)
            self._fill(threads)
        except MemoryError as error:
            raise NotEnoughMemoryError(
                "no memory is left for the model's cache and work space: choose a smaller context (ctx)"
            ) from error
        self._decode_threads = DecodeThreads(threads)
        records = (self._states.ctypes.data, self._layers.ctypes.data, len(self._layers))
        self._team = Team(threads, load_program(), records)
        # Of the last pass: seconds, and of one of more than FEW_TOKENS the seconds per token.
        self._few_seconds = self._token_seconds = math.inf

    @property
    def threads(self) -> int:
        """Members of the team."""
        return self._team.size

    def _buffer(self, rows: int, columns: int, dtype: type = np.float32) -> NDArray[Any]:
        # Rows of whole tiles, from the start of a cache line on.
        width = -(-columns // 16) * 16
        itemsize = np.dtype(dtype).itemsize
        raw = np.zeros(rows * width * itemsize + 64, np.uint8)
        self._memory.append(raw)
        offset = -raw.ctypes.data % 64
        return raw[offset : offset + rows * width * itemsize].view(dtype).reshape(rows, width)

    def _activations(self, record: Any, columns: int) -> None:
        record["columns"] = columns
        record["x"] = self._buffer(CHUNK, columns).ctypes.data
        groups = -(-CHUNK // SLOTS)
        record["packed"] = self._buffer(groups, columns // BLOCK * SLOTS_BLOCK, np.int8).ctypes.data

    def _fill(self, threads: int) -> None:
        config, state, weights = self.config, self._states[0], self._weights
        state["embed_tokens"] = weights.matrix("model.embed_tokens.weight")
        tied = config.tie_word_embeddings
        state["lm_head"] = state["embed_tokens"] if tied else weights.matrix("lm_head.weight")
        state["norm"] = weights.vector("model.norm.weight")
        state["epsilon"], state["query_scale"] = config.rms_norm_eps, 1 / math.sqrt(config.head_dim)
        for index in range(config.num_layers):
            weights.layer(index, self._layers[index])
            self.cache.fill(index, self._layers[index]["cache"], weights.key_bias(index))
        self._fill_work_space(state, threads)

    def _fill_work_space(self, state: Any, threads: int) -> None:
        config = self.config
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self._ids = np.zeros(CHUNK, np.int64)
        state["token_ids"] = self._ids.ctypes.data
        half = config.head_dim // 2
        self._cos, self._sin = np.empty((2, self.cache.capacity, half), np.float32)
        self._has_angles = [False] * (self.cache.capacity // SPLIT)
        state["cos"], state["sin"] = self._cos.ctypes.data, self._sin.ctypes.data
        for name, columns in (
            ("normed", config.hidden_size),
            ("attended", queries),
            ("activated", config.intermediate_size),
        ):
            self._activations(state[name], columns)
        for name, columns in (
            ("residual", config.hidden_size),
            ("query", queries),
            ("key", keys),
            ("value", keys),
        ):
            state[name] = self._buffer(CHUNK, columns).ctypes.data
        # The packed part is SLOTS_BLOCK / BLOCK bytes a column for up to SLOTS rows.
        own = config.hidden_size * (NORMS_ALONE * 4 + SLOTS_BLOCK // BLOCK)
        own_normed = self._buffer(threads, own // 4)
        state["own_normed"], state["own_normed_bytes"] = own_normed.ctypes.data, own_normed.strides[0]
        self._logits = self._buffer(1, config.vocab_size)
        self._fill_attention_space(state, threads)

    def _fill_attention_space(self, state: Any, threads: int) -> None:
        config = self.config
        group, head_dim = config.num_heads // config.num_kv_heads, config.head_dim
        record = state["queries"]
        # Kernels take whole blocks of rows: the last one may reach past the chunk.
        record["row_capacity"] = CHUNK * group + ROWS
        rows = config.num_kv_heads * int(record["row_capacity"])
        record["x"] = self._buffer(rows, head_dim).ctypes.data
        record["x8"] = self._buffer(1, rows * head_dim, np.int8).ctypes.data
        record["scales"] = self._buffer(1, rows * head_dim // 32).ctypes.data
        record["offsets"] = self._buffer(1, rows * head_dim // 32, np.int32).ctypes.data
        stride = PARTIAL_HEADER + head_dim * 4
        partials = FEW_TOKENS * self.cache.capacity // SPLIT * config.num_heads
        state["partials"] = self._buffer(partials, stride // 4).ctypes.data
        attention = ATTENTION_SCRATCH_BYTES + (ROWS + TOKENS_PER_ITEM * group) * stride
        scratch = max(matmul_scratch_bytes(CHUNK), attention)
        state["scratch"] = self._buffer(threads, scratch // 4).ctypes.data
        state["scratch_bytes"] = -(-scratch // 64) * 64

    def _fill_angles(self, start: int, stop: int) -> None:
        """RoPE's tables for new positions; those of keys that came from a snapshot are not needed."""
        for split in range(start // SPLIT, -(-stop // SPLIT)):
            if not self._has_angles[split]:
                first, end = split * SPLIT, (split + 1) * SPLIT
                self._cos[first:end], self._sin[first:end] = rope_tables(self.config, first, end)
                self._has_angles[split] = True

    def run(
        self,
        token_ids: NDArray[np.int64],
        position: int,
        logits_from: int,
        cancelled: Callable[[], bool] | None = None,
    ) -> NDArray[np.float32]:
        """Runs up to CHUNK tokens at ``position`` and following, and keeps their keys and values.

        Returns the logits (tokens - logits_from, vocab) f32 of the tokens from ``logits_from`` on: a view that the
        next call overwrites.  ``cancelled``: asked while a long pass runs, which ends early when it returns True.
        Raises PassCancelled then; the cache holds what it held before at all positions below ``position``.
        """
        tokens = len(token_ids)
        if not 0 < tokens <= CHUNK or position < 0 or position + tokens > self.context:
            raise ValueError(f"{tokens} tokens at position {position} do not fit a context of {self.context}")
        if int(token_ids.min()) < 0 or int(token_ids.max()) >= self.config.vocab_size:
            raise ValueError(f"token ids must lie in 0..{self.config.vocab_size - 1}")
        self._fill_angles(position, position + tokens)
        wanted = tokens - logits_from
        if wanted > len(self._logits):
            # Checking drafts asks for a few rows, now more and now fewer: room for all of them at once.
            self._logits = self._buffer(max(wanted, FEW_TOKENS), self.config.vocab_size)
        self._ids[:tokens] = token_ids
        state = self._states[0]
        state["tokens"], state["position"], state["logits_from"] = tokens, position, logits_from
        state["logits"] = self._logits.ctypes.data
        self._step(tokens, cancelled)
        return self._logits[: max(0, wanted), : self.config.vocab_size]

    def _step(self, tokens: int, cancelled: Callable[[], bool] | None) -> None:
        active = self._decode_threads.choose() if tokens == 1 else None
        started = time.perf_counter()
        expected = self._few_seconds if tokens <= FEW_TOKENS else self._token_seconds * tokens
        if cancelled is None or expected < _WATCHED_SECONDS:
            self._team.run(active)
        elif not self._team.run_watched(cancelled, active):
            raise PassCancelled
        seconds = time.perf_counter() - started
        if tokens == 1:
            self._decode_threads.note(seconds)
        if tokens <= FEW_TOKENS:
            self._few_seconds = seconds
        else:
            self._token_seconds = seconds / tokens

    def clear(self) -> None:
        """Forgets the cache, whatever it holds."""
        self.cache.clear()

    def close(self) -> None:
        """Ends the threads; the model cannot be used afterwards."""
        self._team.close()


def _check_shapes(folder: TensorSource) -> None:
    config = folder.config
    for name, value, multiple in (
        ("hidden_size", config.hidden_size, 32),
        ("intermediate_size", config.intermediate_size, 32),
        ("head_dim", config.head_dim, 32),
    ):
        if value % multiple:
            raise ModelError(f"{folder.path}: {name} is {value}; the kernels need a multiple of {multiple}")
