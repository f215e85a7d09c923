"""The decoder on the CPU: its memory, and the thread team that runs `qwchat.cpu.forward` on chunks of tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant.model_config import ModelConfig
from quant.wording import Argument, ArgumentMessage
from qwchat.cpu.compiled_forward import load_entry_points
from qwchat.cpu.kernels.records import SPLIT_ATTENTION_TOKENS, SPLIT_POSITIONS
from qwchat.cpu.kernels.thread_counts import DecodeThreadTuner
from qwchat.cpu.kernels.thread_team import ThreadTeam
from qwchat.cpu.kv_cache import KVCache, choose_kv_kind
from qwchat.cpu.layer_records import LAYER
from qwchat.cpu.weights import Weights
from qwchat.cpu.workspace import CHUNK, LogitsBuffer, Workspace
from qwchat.errors import ModelError, NotEnoughMemoryError
from qwchat.limits import DEFAULT_ACTIVATIONS
from qwchat.model.decoder import Cache, CancelCheck, PassCancelled
from qwchat.model.key_offsets import key_offsets
from qwchat.model.logit_rows import HostRow, LogitRow
from qwchat.model.tensor_source import TensorSource

_CANCELLABLE_SECONDS = 0.05  # Passes that take this long can be cancelled, which costs about 0.1 ms.


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """Inputs of the matrices of one layer, as views that the next pass overwrites.

    Attributes:
        attention: input of `o_proj`, (tokens, num_heads * head_dim) f32.
        mlp: input of `gate_proj` and `up_proj`, (tokens, hidden) f32.
        activation: input of `down_proj`, (tokens, intermediate) f32, if that matrix is stored in floats.
    """

    attention: NDArray[np.float32]
    mlp: NDArray[np.float32]
    activation: NDArray[np.float32]


class CpuDecoder:
    """A model, or a range of its layers, with the threads that run it.

    It implements `qwchat.model.decoder.Decoder`, which documents the methods.

    Args:
        folder: config and tensors; only tensors of the layers to run are read.
        context: positions of each KV cache.
        threads: members of the thread team, the calling thread included.
        kv: kind of the caches, see `qwchat.cpu.kv_cache.choose_kv_kind`.
        activations: bits of the activations that matrices of integer formats are multiplied by, 8 or 16.
        layers: the layers to run, by default all. The embedding is loaded with the first layer of the model, the head
            with the last.

    Raises:
        ModelError: the kernels cannot run the model's shapes or formats.
        NotEnoughMemoryError: there is not enough memory for the work space.
    """

    chunk = CHUNK
    exact_rows = CHUNK  # Each kernel sums a row in the same order, whatever other rows it computes.

    def __init__(
        self,
        folder: TensorSource,
        *,
        context: int,
        threads: int,
        kv: str = "auto",
        activations: int = DEFAULT_ACTIVATIONS,
        layers: range | None = None,
    ) -> None:
        self.config = config = folder.config
        self.context, self.activations = context, activations
        self.layers = range(config.num_layers) if layers is None else layers
        if self.layers.step != 1 or not 0 <= self.layers.start <= self.layers.stop <= config.num_layers:
            raise ValueError(f"layers must be a range within 0..{config.num_layers} with step 1, not {self.layers}")
        self._has_embedding, self._has_head = self.layers.start == 0, self.layers.stop == config.num_layers
        _check_shapes(folder)
        self._kind = choose_kv_kind(kv, config, context)
        self._weights = Weights(folder)
        with _memory_errors():
            self._records = np.zeros(len(self.layers), LAYER)
            capacity = -(-context // SPLIT_POSITIONS) * SPLIT_POSITIONS
            self._workspace = Workspace(config, capacity, threads, bool(self.layers), activations)
            self._fill_weights()
        self._bound: KVCache | None = None  # the cache that the LAYER records point to
        self._logits: LogitsBuffer | None = None  # of head()
        self._thread_tuner = DecodeThreadTuner(threads)
        records = (self._workspace.states.ctypes.data, self._records.ctypes.data)
        self._team = ThreadTeam(threads, load_entry_points(), records)
        # Seconds of the last short pass through all layers, and seconds per token of the last long one.
        self._few_seconds = self._token_seconds = math.inf

    @property
    def threads(self) -> int:
        """Number of threads that compute."""
        return self._team.size

    def _fill_weights(self) -> None:
        state, weights, tied = self._workspace.state, self._weights, self.config.tie_word_embeddings
        if self._has_embedding or (self._has_head and tied):
            state["embed_tokens"] = weights.matrix("model.embed_tokens.weight")
        if self._has_head:
            state["lm_head"] = state["embed_tokens"] if tied else weights.matrix("lm_head.weight")
            state["norm"] = weights.vector("model.norm.weight")
        self._key_offsets = []
        for layer, record in zip(self.layers, self._records, strict=True):
            weights.layer(layer, record)
            if self._kind == "q8":
                self._key_offsets.append(key_offsets(self.config, weights.key_bias(layer)))

    def make_cache(self) -> KVCache:
        """Return an empty cache for another conversation. Raises NotEnoughMemoryError."""
        with _memory_errors():
            logits = LogitsBuffer(self.config.vocab_size) if self._has_head else None
            return KVCache(
                self.config, self.context, self._kind, self.layers, self._key_offsets, logits, self.activations
            )

    def run(
        self,
        token_ids: NDArray[np.int64],
        position: int,
        logits_from: int,
        cache: Cache,
        cancelled: CancelCheck | None = None,
    ) -> NDArray[np.float32]:
        """Run the whole model on a chunk of tokens; see `Decoder.run`."""
        tokens = len(token_ids)
        self._check_tokens(tokens, position)
        self._load_tokens(token_ids)
        bound = self._bind_cache(cache)
        if bound.logits is None or not self._has_embedding:
            raise ValueError(f"the decoder has {len(self.layers)} of {self.config.num_layers} layers: use run_layers")
        wanted = max(0, tokens - logits_from)
        logits = bound.logits.rows(wanted)
        self._workspace.fill_angles(position, position + tokens)
        self._workspace.state["logits"] = logits.ctypes.data
        self._run_pass(tokens, position, self.layers, logits_from, cancelled)
        return logits[:wanted, : self.config.vocab_size]

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
        if not self._has_embedding:
            raise ValueError("the embedding is not loaded: it belongs to layer 0")
        self._check_tokens(len(token_ids), 0)
        self._load_tokens(token_ids)
        self._run_pass(len(token_ids), 0, range(0), len(token_ids), None)
        return self._workspace.residual[: len(token_ids), : self.config.hidden_size].copy()

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
        if not self.layers.start <= first <= last <= self.layers.stop:
            raise ValueError(f"layers {first} to {last - 1} are not all in {self.layers}")
        self._check_tokens(len(residual), position)
        if first == last:
            return
        rows = self._load_residual(residual)
        self._bind_cache(cache)
        self._workspace.fill_angles(position, position + len(residual))
        self._run_pass(len(residual), position, range(first, last), len(residual), cancelled)
        residual[:] = rows

    def layer_inputs(self, tokens: int) -> LayerInputs:
        """Return the inputs of some matrices of the layer that the last `run_layers` ran last.

        Args:
            tokens: tokens of that pass, more than NORM_PER_THREAD_TOKENS; fewer are normed by each thread for itself.
        """
        space = self._workspace
        return LayerInputs(space.attended[:tokens], space.normed[:tokens], space.activated[:tokens])

    def head(self, residual: NDArray[np.float32], logits_from: int) -> NDArray[np.float32]:
        """Return logits of the residual stream after the last layer; see `Decoder.head`."""
        if not self._has_head:
            raise ValueError(f"the head is not loaded: it belongs to layer {self.config.num_layers - 1}")
        tokens = len(residual)
        self._check_tokens(tokens, 0)
        self._load_residual(residual)
        wanted = max(0, tokens - logits_from)
        if self._logits is None:
            self._logits = LogitsBuffer(self.config.vocab_size)
        logits = self._logits.rows(wanted)
        if wanted:
            self._workspace.state["logits"] = logits.ctypes.data
            self._run_pass(tokens, 0, range(0), logits_from, None)
        return logits[:wanted, : self.config.vocab_size]

    def _check_tokens(self, tokens: int, position: int) -> None:
        if not 0 < tokens <= CHUNK or position < 0 or position + tokens > self.context:
            raise ValueError(f"{tokens} tokens at position {position} do not fit a context of {self.context}")

    def _load_tokens(self, token_ids: NDArray[np.int64]) -> None:
        """Let the next pass begin with the embeddings of `token_ids`."""
        if int(token_ids.min()) < 0 or int(token_ids.max()) >= self.config.vocab_size:
            raise ValueError(f"token ids must lie in 0..{self.config.vocab_size - 1}")
        self._team.finish()
        self._workspace.ids[: len(token_ids)] = token_ids
        self._workspace.state["from_residual"] = 0

    def _load_residual(self, residual: NDArray[np.float32]) -> NDArray[np.float32]:
        """Let the next pass begin with `residual` (tokens, hidden) f32.

        Returns:
            The rows of the work buffer, where the pass leaves its own residual stream.
        """
        if residual.ndim != 2 or residual.shape[1] != self.config.hidden_size or residual.dtype != np.float32:
            raise ValueError(f"the residual must be (tokens, {self.config.hidden_size}) f32")
        self._team.finish()
        rows = self._workspace.residual[: len(residual), : self.config.hidden_size]
        rows[:] = residual
        self._workspace.state["from_residual"] = 1
        return rows

    def _bind_cache(self, cache: Cache) -> KVCache:
        """Let the passes that follow read and write `cache`."""
        if cache is not self._bound:
            capacity = -(-self.context // SPLIT_POSITIONS) * SPLIT_POSITIONS
            layout = (self.config, self._kind, self.layers, capacity, self.activations)
            if not isinstance(cache, KVCache) or cache.layout != layout:
                raise ValueError("the cache was made for another decoder")
            self._records["cache"] = cache.records
            self._bound = cache
        return self._bound

    def _run_pass(
        self, tokens: int, position: int, layers: range, logits_from: int, cancelled: CancelCheck | None
    ) -> None:
        """Run one pass; raise PassCancelled if `cancelled` returned True."""
        state, start = self._workspace.state, self.layers.start
        state["tokens"], state["position"], state["logits_from"] = tokens, position, logits_from
        state["first_layer"], state["last_layer"] = layers.start - start, layers.stop - start
        active = self._thread_tuner.choose() if tokens == 1 else None
        started = time.perf_counter()
        # A pass through some of the layers takes less than that: watching it costs a little, but is harmless.
        expected = self._few_seconds if tokens <= SPLIT_ATTENTION_TOKENS else self._token_seconds * tokens
        if cancelled is None or expected < _CANCELLABLE_SECONDS:
            self._team.run(active)
        elif not self._team.run_cancellable(cancelled, active):
            raise PassCancelled
        if layers and layers == self.layers:
            self._record_seconds(tokens, time.perf_counter() - started)

    def _record_seconds(self, tokens: int, seconds: float) -> None:
        """Record the time of a pass through all layers."""
        if tokens == 1:
            self._thread_tuner.record(seconds)
        if tokens <= SPLIT_ATTENTION_TOKENS:
            self._few_seconds = seconds
        else:
            self._token_seconds = seconds / tokens

    def close(self) -> None:
        """End the threads. The decoder cannot be used afterwards."""
        self._team.close()


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn a MemoryError into NotEnoughMemoryError."""
    try:
        yield
    except MemoryError as error:
        raise NotEnoughMemoryError(
            ArgumentMessage(
                "there is not enough memory for the KV cache and the work space: choose a smaller ",
                Argument("context"),
            )
        ) from error


def _check_shapes(folder: TensorSource) -> None:
    """Raise ModelError for sizes that the kernels cannot run."""
    config: ModelConfig = folder.config
    for name, value, multiple in (
        ("hidden_size", config.hidden_size, 32),
        ("intermediate_size", config.intermediate_size, 32),
        ("head_dim", config.head_dim, 32),
    ):
        if value % multiple:
            raise ModelError(f"{folder.path}: {name} is {value}; the kernels need a multiple of {multiple}")
