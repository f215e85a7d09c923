"""Run llama.cpp through the low-level bindings of llama-cpp-python, one ctypes call per batch.

Python costs llama.cpp nothing that way. Needs the extra `bench`, built for this machine:

    CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF" pip install -e '.[bench]'
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from benchmarks.cells import Setting
from benchmarks.llama_state import StateFormatError, repeat_state

KV_TYPES = {"f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0}
FILL_BLOCK = 64  # positions that are computed and then copied to fill the cache


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _silent(_level: int, _text: bytes, _data: int | None) -> None:
    """Drop a log message of llama.cpp."""


def start_llama() -> None:
    """Initialise the library and keep it from writing to stderr."""
    llama_cpp.llama_log_set(_silent, None)
    llama_cpp.llama_backend_init()


class LlamaModel:
    """Weights of one GGUF file. Raises RuntimeError if llama.cpp refuses it."""

    def __init__(self, path: Path, *, repack: bool, threads: int) -> None:
        start_llama()
        params = llama_cpp.llama_model_default_params()
        params.use_extra_bufts = repack
        params.n_gpu_layers = 0
        self.threads = threads
        self.handle = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            raise RuntimeError(f"llama.cpp could not load {path}")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.handle))


class LlamaContext:
    """KV cache of `size` positions, with prefill and decode. Raises RuntimeError if llama.cpp refuses it."""

    def __init__(self, model: LlamaModel, setting: Setting, size: int) -> None:
        flash = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if setting.flash else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = size
        params.n_batch = params.n_ubatch = setting.ubatch
        params.n_threads = params.n_threads_batch = model.threads
        params.flash_attn_type = flash
        params.type_k, params.type_v = KV_TYPES[setting.keys], KV_TYPES[setting.values]
        params.offload_kqv = params.op_offload = False
        self._context = llama_cpp.llama_init_from_model(model.handle, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp refuses {setting}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._ubatch, self._vocab_size = setting.ubatch, model.vocab_size
        self._batch = llama_cpp.llama_batch_init(setting.ubatch, 0, 1)
        self._length = 0

    def close(self) -> None:
        """Free the memory of the context."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)

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
            if self._load(repeat_state(self._save(), len(tokens))):
                self._length = len(tokens)
                return True
        except StateFormatError:
            pass  # Another version of llama.cpp: evaluate all tokens below.
        self.prefill(tokens)
        return False

    def last_logits(self) -> NDArray[np.float32]:
        """Return a copy of the logits of the last evaluated token, (vocab_size,)."""
        start = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(start, (self._vocab_size,)).copy()

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
            if status := llama_cpp.llama_decode(self._context, batch):
                raise RuntimeError(f"llama_decode gave {status} at position {self._length}")
            self._length += len(piece)
        llama_cpp.llama_synchronize(self._context)
        return time.perf_counter() - started

    def _truncate(self, length: int) -> None:
        if not llama_cpp.llama_memory_seq_rm(self._memory, 0, length, -1):
            raise RuntimeError(f"llama.cpp cannot cut its cache back to {length}")
        self._length = length

    def _save(self) -> bytes:
        size = llama_cpp.llama_state_seq_get_size(self._context, 0)
        buffer = (ctypes.c_uint8 * size)()
        written = llama_cpp.llama_state_seq_get_data(self._context, buffer, size, 0)
        return bytes(buffer)[:written]

    def _load(self, state: bytes) -> bool:
        self._truncate(0)
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        return bool(llama_cpp.llama_state_seq_set_data(self._context, buffer, len(state), 0))
