"""The decoder on an NVIDIA GPU: weights, buffers and caches there, and passes as graphs of launches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.families import expected_tensors
from qwchat.cuda.device import OpenGpu
from qwchat.cuda.driver_errors import too_little_memory
from qwchat.cuda.graph import Graphs
from qwchat.cuda.host_access import HostAccess
from qwchat.cuda.kv_cache import CudaCache
from qwchat.cuda.launch import Step, after_copy, run_all
from qwchat.cuda.manifest import PTX_FOLDER
from qwchat.cuda.memory import DeviceMemory, Stream
from qwchat.cuda.modules import Modules
from qwchat.cuda.stages import DecodeStages
from qwchat.cuda.upload import Uploader
from qwchat.cuda.weights import CudaWeights
from qwchat.cuda.workspace import CudaWorkspace
from qwchat.errors import ModelError
from qwchat.model.decoder import Cache, CancelCheck, PassCancelled
from qwchat.model.gpu_memory import CHUNK, DECODE_ROWS, DevicePart, gpu_memory, stored_tensors
from qwchat.model.key_offsets import key_offsets
from qwchat.model.tensor_source import TensorSource

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
        self._gpu, self._part, self._kind = gpu, part, kind
        try:
            self._build(folder, progress, ptx)
        except BaseException:
            gpu.close()
            raise

    def _build(self, folder: TensorSource, progress: Progress | None, ptx: Path) -> None:
        gpu, config = self._gpu, self.config
        gpu.activate()
        arrays = gpu_memory(config, stored_tensors(config, folder.tensor), self.context, self._kind, self._part)
        free = gpu.free_bytes()
        if arrays.allocated > free:
            raise too_little_memory(arrays.allocated, free, "the model with its KV cache")
        self._memory, modules = DeviceMemory(gpu), Modules(gpu, ptx)
        self._graphs, self._stream = Graphs(gpu), Stream(gpu.driver)
        gpu.on_close(self._stream.destroy)
        self._access = HostAccess(gpu, self._stream)
        weights = CudaWeights(self._memory, arrays.weight_arrays, folder)
        self._space = CudaWorkspace(gpu, self._memory, self._access, config, arrays.workspace_arrays)
        self._stages = DecodeStages(gpu, modules, config, weights, self._space, self._kind, self.layers)
        self._check_kernels(folder.path, modules)
        report = None if progress is None else _Total(progress, arrays.weights).add
        with Uploader(gpu.driver, progress=report) as uploader:
            weights.upload(uploader)
        self._write_key_offsets(folder)
        self._cache_numbers = itertools.count()
        self._head_logits = np.zeros((0, config.vocab_size), np.float32)
        self._busy = False

    def _check_kernels(self, path: Path, modules: Modules) -> None:
        """Raise ModelError unless there is a kernel for the cache and for each matrix."""
        if not modules.has(f"attend_{self._kind}_d{self.config.head_dim}"):
            raise ModelError(f"{path}: the GPU has no kernel for heads of {self.config.head_dim} dimensions")
        for name, kernel in self._stages.needed(self._part):
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
        self._memory.on_delete(cache, partial(self._graphs.remove, lambda key: key[0] == number))
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
        tokens = len(token_ids)
        self._check_tokens(tokens, position)
        self._check_ids(token_ids)
        own = self._own(cache)
        if self._part != DevicePart.whole(self.config):
            raise ValueError(f"the decoder has {len(self.layers)} of {self.config.num_layers} layers: use run_layers")
        self._begin()
        self._space.fill_angles(position + tokens)
        wanted = max(0, tokens - logits_from)
        logits, done = own.logits_rows(wanted), 0
        for start, count in self._groups(tokens, cancelled):
            self._space.ids[:count] = token_ids[start : start + count]
            rows = min(count, max(0, start + count - logits_from))
            key = (own.number, "run", count, rows)
            self._replay(key, partial(self._run_steps, own, count, rows), count, position + start, count - rows)
            logits[done : done + rows] = self._space.logits[:rows] if rows else 0
            done += rows
        return logits[:wanted]

    def _run_steps(self, cache: CudaCache, count: int, rows: int) -> Iterator[Step]:
        stages = self._stages
        layers = (stages.layer(layer, count, cache) for layer in self.layers)
        yield self._space.input_copy(count)
        yield from after_copy(itertools.chain(stages.embed(count), *layers, stages.head(rows) if rows else ()))
        if rows:
            yield self._space.logits_copy(rows)

    def embed(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the residual stream before the first layer; see `Decoder.embed`."""
        if not self._part.embedding:
            raise ValueError("the embedding is not loaded")
        self._check_tokens(len(token_ids), 0)
        self._check_ids(token_ids)
        self._begin()
        count, space = len(token_ids), self._space
        space.ids[:count] = token_ids
        out = space.residual_copy(count, to_device=False)
        self._replay(None, lambda: [space.input_copy(count), *after_copy(self._stages.embed(count)), out], count, 0, 0)
        return space.residual[:count].copy()

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
        result = np.empty_like(residual)
        for start, count in self._groups(tokens, cancelled):
            self._space.residual[:count] = residual[start : start + count]
            key = (own.number, "layers", count, first, last)
            steps = partial(self._layer_steps, own, count, range(first, last))
            self._replay(key, steps, count, position + start, count)
            result[start : start + count] = self._space.residual[:count]
        residual[:] = result

    def _layer_steps(self, cache: CudaCache, count: int, layers: range) -> Iterator[Step]:
        yield self._space.input_copy(0)
        yield self._space.residual_copy(count, to_device=True)
        yield from after_copy(launch for layer in layers for launch in self._stages.layer(layer, count, cache))
        yield self._space.residual_copy(count, to_device=False)

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
        for start, count in self._groups(len(wanted), None):
            self._space.residual[:count] = wanted[start : start + count]
            self._replay(("", "head", count), partial(self._head_steps, count), count, 0, 0)
            self._head_logits[start : start + count] = self._space.logits[:count]
        return self._head_logits[: len(wanted)]

    def _head_steps(self, count: int) -> Iterator[Step]:
        yield self._space.input_copy(0)
        yield self._space.residual_copy(count, to_device=True)
        yield from after_copy(self._stages.head(count))
        yield self._space.logits_copy(count)

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

    @staticmethod
    def _groups(tokens: int, cancelled: CancelCheck | None) -> Iterator[tuple[int, int]]:
        """Yield start and length of groups of tokens. Raises PassCancelled between two if `cancelled` returns True."""
        for start in range(0, tokens, DECODE_ROWS):
            if start and cancelled is not None and cancelled():
                raise PassCancelled
            yield start, min(DECODE_ROWS, tokens - start)

    def _begin(self) -> None:
        """Let this thread use the device, and wait for a pass that was interrupted."""
        self._gpu.activate()
        if self._busy:
            self._stream.synchronise()
            self._busy = False
        self._memory.collect()

    def _replay(
        self,
        key: tuple[object, ...] | None,
        steps: Callable[[], Iterable[Step]],
        tokens: int,
        position: int,
        logits_from: int,
    ) -> None:
        """Run the graph of `key`, made of `steps` the first time, and wait for it. Without a key no graph is kept."""
        self._space.step[:3] = tokens, position, logits_from
        self._busy = True
        if key is None:
            run_all(list(steps()), self._gpu.driver, self._stream.handle)
        else:
            self._graphs.run(key, steps, self._stream)
        self._stream.synchronise()
        self._busy = False

    def close(self) -> None:
        """Free everything on the device. The decoder cannot be used afterwards."""
        self._gpu.close()


class _Total:
    """Adds up what was uploaded."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, count: int) -> None:
        self._done += count
        self._progress(self._done, self._total)
