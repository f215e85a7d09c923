"""The decoder on an NVIDIA GPU: weights, buffers and caches there, and passes as graphs of launches."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.families import expected_tensors
from qwchat.cuda.device import OpenGpu
from qwchat.cuda.driver_errors import too_little_memory
from qwchat.cuda.host_access import HostAccess
from qwchat.cuda.kv_cache import CudaCache
from qwchat.cuda.manifest import PTX_FOLDER
from qwchat.cuda.memory import DeviceMemory, Stream
from qwchat.cuda.modules import Modules
from qwchat.cuda.passes import Passes, groups
from qwchat.cuda.prefill_stages import PrefillStages
from qwchat.cuda.stages import DecodeStages, StageParts
from qwchat.cuda.upload import Uploader
from qwchat.cuda.weights import CudaWeights
from qwchat.cuda.workspace import CudaWorkspace
from qwchat.errors import ModelError
from qwchat.model.decoder import Cache, CancelCheck
from qwchat.model.gpu_memory import CHUNK, DECODE_ROWS, DevicePart, gpu_memory, stored_tensors
from qwchat.model.key_offsets import key_offsets
from qwchat.model.logit_rows import HostRow, LogitRow
from qwchat.model.tensor_source import TensorSource

_MOST_CANDIDATES = 262_144  # entries of a row among which the largest can be found
Progress = Callable[[int, int], None]
"""Called with the bytes of the weights that were uploaded so far, and with all of them."""


class CudaDecoder:
    """A model, or its last layers, on a GPU.

    It implements `qwchat.model.decoder.Decoder`, which documents the methods. Each of them may raise GpuLostError.

    Args:
        folder: config and tensors; only tensors of the layers to run are read.
        gpu: the device; the decoder closes it, also if it cannot be built.
        context: positions of each KV cache.
        kind: kind of the caches, `f16` or `q8`.
        part: what runs on the device.
        progress: called while the weights are uploaded.
        ptx: folder of the kernels.

    Attributes:
        gpu: the device.
        passes: what runs on it.

    Raises:
        ModelError: the kernels cannot run the model's shapes or formats.
        GpuMemoryError: the device has too little free memory.
        GpuError: the device or its driver cannot be used.
    """

    chunk = CHUNK
    exact_rows = DECODE_ROWS
    threads = 1

    def __init__(
        self,
        folder: TensorSource,
        gpu: OpenGpu,
        *,
        context: int,
        kind: str,
        part: DevicePart,
        progress: Progress | None = None,
        ptx: Path = PTX_FOLDER,
    ) -> None:
        self.config, self.context, self.layers = folder.config, context, part.layers
        self.gpu, self._part, self._kind = gpu, part, kind
        try:
            self._build(folder, progress, ptx)
        except BaseException:
            gpu.close()
            raise

    def _build(self, folder: TensorSource, progress: Progress | None, ptx: Path) -> None:
        gpu, config = self.gpu, self.config
        gpu.activate()
        arrays = gpu_memory(config, stored_tensors(config, folder.tensor), self.context, self._kind, self._part)
        free = gpu.free_bytes()
        if arrays.allocated > free:
            raise too_little_memory(arrays.allocated, free, "the model with its KV cache")
        self._memory, modules = DeviceMemory(gpu), Modules(gpu, ptx)
        stream = Stream(gpu.driver)
        gpu.on_close(stream.destroy)
        gpu.wait_before_close(stream.synchronise)
        self._access = HostAccess(gpu, stream)
        weights = CudaWeights(self._memory, arrays.weight_arrays, folder)
        self._space = CudaWorkspace(gpu, self._memory, self._access, config, arrays.workspace_arrays)
        parts = StageParts(gpu, modules, config, weights, self._space, self._kind, self.layers)
        stages = DecodeStages(parts)
        self._check_kernels(folder.path, modules, stages)
        self.passes = Passes(gpu, stream, self._space, stages, PrefillStages(parts))
        report = None if progress is None else _Total(progress, arrays.weights).add
        with Uploader(gpu.driver, progress=report) as uploader:
            weights.upload(uploader)
        self._write_key_offsets(folder)
        self._cache_numbers = itertools.count()
        self._head_logits = np.zeros((0, config.vocab_size), np.float32)

    def _check_kernels(self, path: Path, modules: Modules, stages: DecodeStages) -> None:
        """Raise ModelError unless there is a kernel for the cache and for each matrix."""
        if not modules.has(f"attend_{self._kind}_d{self.config.head_dim}"):
            raise ModelError(f"{path}: the GPU has no kernel for heads of {self.config.head_dim} dimensions")
        for name, kernel in stages.needed(self._part):
            if not modules.has(kernel):
                raise ModelError(f"{path}: the GPU has no kernel {kernel}, which tensor {name} needs")

    def _write_key_offsets(self, folder: TensorSource) -> None:
        names = expected_tensors(self.config)
        offsets = np.zeros((len(self.layers), self.config.num_kv_heads * self.config.head_dim), np.float32)
        for index, layer in enumerate(self.layers):
            name = f"model.layers.{layer}.self_attn.k_proj.bias"
            if name in names:
                offsets[index] = key_offsets(self.config, folder.tensor(name).parts["values"])
        self._access.write(self._space["key_offsets"], offsets)

    @property
    def bytes_by_purpose(self) -> dict[str, int]:
        """Bytes of the device's memory that are allocated for `weights`, `cache` and `workspace`."""
        return self._memory.bytes_by_purpose

    def make_cache(self) -> CudaCache:
        """Return an empty cache for another conversation. Raises GpuMemoryError."""
        self._begin()
        number = next(self._cache_numbers)
        shape = (self.config, self.context, self._kind, self.layers)
        cache = CudaCache(self._memory, self._access, *shape, number)
        self._memory.on_delete(cache, partial(self.passes.forget, number))
        return cache

    def run(
        self,
        token_ids: NDArray[np.int64],
        position: int,
        logits_from: int,
        cache: Cache,
        cancelled: CancelCheck | None = None,
    ) -> NDArray[np.float32]:
        """Run the whole model on a chunk of tokens; see `Decoder.run`."""
        own = self._start_run(token_ids, position, cache)
        tokens, logits_from = len(token_ids), min(max(0, logits_from), len(token_ids))
        logits = own.logits_rows(tokens - logits_from)
        if tokens <= DECODE_ROWS:
            rows = tokens - logits_from
            self.passes.run(tokens, position, own, self.layers, rows, largest=False)
            if rows:
                logits[:rows] = self._space.logits[:rows]
        else:
            self.passes.prefill(tokens, position, own, self.layers, cancelled, from_residual=False)
            for start, count in groups(logits_from, tokens):
                self.passes.head(tokens, start, count, largest=False, upload=False)
                logits[start - logits_from :][:count] = self._space.logits[:count]
        return logits[: tokens - logits_from]

    def run_rows(
        self,
        token_ids: NDArray[np.int64],
        position: int,
        logits_from: int,
        cache: Cache,
        cancelled: CancelCheck | None = None,
    ) -> list[LogitRow]:
        """Run the whole model; return rows of logits that stay on the device; see `Decoder.run_rows`."""
        tokens, rows = len(token_ids), max(0, len(token_ids) - logits_from)
        if not 0 < rows <= min(tokens, DECODE_ROWS) or self.config.vocab_size > _MOST_CANDIDATES:
            return [HostRow(row) for row in self.run(token_ids, position, logits_from, cache, cancelled)]
        own = self._start_run(token_ids, position, cache)
        if tokens <= DECODE_ROWS:
            self.passes.run(tokens, position, own, self.layers, rows, largest=True)
        else:
            self.passes.prefill(tokens, position, own, self.layers, cancelled, from_residual=False)
            self.passes.head(tokens, tokens - rows, rows, largest=True, upload=False)
        return self.passes.logits(rows).rows()

    def _start_run(self, token_ids: NDArray[np.int64], position: int, cache: Cache) -> CudaCache:
        """Check the arguments of a pass through the whole model, and load the ids; return the cache."""
        self._check_tokens(len(token_ids), position)
        self._check_ids(token_ids)
        own = self._own(cache)
        if self._part != DevicePart.whole(self.config):
            raise ValueError(f"the decoder has {len(self.layers)} of {self.config.num_layers} layers: use run_layers")
        self._begin()
        self._space.fill_angles(position + len(token_ids))
        self._space.ids[: len(token_ids)] = token_ids
        return own

    def embed(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the residual stream before the first layer; see `Decoder.embed`."""
        if not self._part.embedding:
            raise ValueError("the embedding is not loaded")
        self._check_tokens(len(token_ids), 0)
        self._check_ids(token_ids)
        self._begin()
        self._space.ids[: len(token_ids)] = token_ids
        self.passes.embed(len(token_ids))
        return self._space.residual[: len(token_ids)].copy()

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
        tokens, own = len(residual), self._own(cache)
        self._check_tokens(tokens, position)
        self._check_residual(residual)
        if first == last:
            return
        self._begin()
        self._space.fill_angles(position + tokens)
        self._space.residual[:tokens] = residual
        if tokens <= DECODE_ROWS:
            self.passes.run_layers(tokens, position, own, range(first, last))
            residual[:] = self._space.residual[:tokens]
        else:
            self.passes.prefill(tokens, position, own, range(first, last), cancelled, from_residual=True)
            residual[:] = self.passes.download_residual(tokens)

    def head(self, residual: NDArray[np.float32], logits_from: int) -> NDArray[np.float32]:
        """Return logits of the residual stream after the last layer; see `Decoder.head`."""
        if not self._part.head:
            raise ValueError(f"the head is not loaded: it belongs to layer {self.config.num_layers - 1}")
        self._check_tokens(len(residual), 0)
        self._check_residual(residual)
        self._begin()
        wanted = residual[max(0, logits_from) :]
        if len(wanted) > len(self._head_logits):
            self._head_logits = np.zeros((len(wanted), self.config.vocab_size), np.float32)
        for start, count in groups(0, len(wanted)):
            self._space.residual[:count] = wanted[start : start + count]
            self.passes.head(count, 0, count, largest=False, upload=True)
            self._head_logits[start : start + count] = self._space.logits[:count]
        return self._head_logits[: len(wanted)]

    def _check_tokens(self, tokens: int, position: int) -> None:
        if not 0 < tokens <= CHUNK or position < 0 or position + tokens > self.context:
            raise ValueError(f"{tokens} tokens at position {position} do not fit a context of {self.context}")

    def _check_ids(self, token_ids: NDArray[np.int64]) -> None:
        if int(token_ids.min()) < 0 or int(token_ids.max()) >= self.config.vocab_size:
            raise ValueError(f"token ids must lie in 0..{self.config.vocab_size - 1}")

    def _check_residual(self, residual: NDArray[np.float32]) -> None:
        if residual.ndim != 2 or residual.shape[1] != self.config.hidden_size or residual.dtype != np.float32:
            raise ValueError(f"the residual must be (tokens, {self.config.hidden_size}) f32")

    def _own(self, cache: Cache) -> CudaCache:
        """Return a cache of this decoder. Raises ValueError for others."""
        if not isinstance(cache, CudaCache) or cache.memory is not self._memory:
            raise ValueError("the cache was made for another decoder")
        return cache

    def _begin(self) -> None:
        """Let this thread use the device, and destroy what belonged to deleted caches."""
        self.passes.begin()
        self._memory.collect()

    def close(self) -> None:
        """Free everything on the device. The decoder cannot be used afterwards."""
        self.gpu.close()


class _Total:
    """Adds up what was uploaded."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, count: int) -> None:
        self._done += count
        self._progress(self._done, self._total)
