"""Run llama.cpp through the low-level bindings of llama-cpp-python.

Needs the extra `bench`, built for this machine:

    CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF" pip install -e '.[bench]'
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from benchmarks.batched_context import BatchedContext
from benchmarks.cells import Setting
from benchmarks.llama_state import LLAMA_CPP

KV_TYPES = {"f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0}


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


class LlamaContext(BatchedContext):
    """KV cache of `size` positions, with prefill and decode. Raises RuntimeError if llama.cpp refuses it."""

    layout = LLAMA_CPP

    def __init__(self, model: LlamaModel, setting: Setting, size: int) -> None:
        flash = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if setting.flash else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = size
        params.n_batch = params.n_ubatch = setting.ubatch
        params.n_threads = params.n_threads_batch = model.threads
        params.flash_attn_type = flash
        params.type_k, params.type_v = KV_TYPES[setting.keys], KV_TYPES[setting.values]
        params.offload_kqv = params.op_offload = False
        context = llama_cpp.llama_init_from_model(model.handle, params)
        if not context:
            raise RuntimeError(f"llama.cpp refuses {setting}")
        super().__init__(llama_cpp, context, setting.ubatch)
        self._memory, self._vocab_size = llama_cpp.llama_get_memory(context), model.vocab_size

    def last_logits(self) -> NDArray[np.float32]:
        """Return a copy of the logits of the last evaluated token, (vocab_size,)."""
        start = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(start, (self._vocab_size,)).copy()

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
