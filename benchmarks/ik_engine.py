"""Run ik_llama.cpp through the low-level bindings of ik-llama-cpp-python, in an environment of its own.

    python -m benchmarks.ik_engine                                 # version, and instruction sets of the library
    python -m benchmarks.ik_engine quantise IN.gguf OUT.gguf IQ4_KS

Published wheels are built for AVX2. Build the package for this machine, which takes the source distribution:

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary ik-llama-cpp-python ik-llama-cpp-python
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import ik_llama_cpp._ctypes_api as api
from ik_llama_cpp.quantize import find_quantize_bin

from benchmarks.batched_context import BatchedContext
from benchmarks.cells import Setting
from benchmarks.llama_state import IK_LLAMA_CPP

KV_TYPES = {"f16": 1, "q8_0": 8}  # enum ggml_type
_HANDLE, _FLAGS = ctypes.c_void_p, ctypes.c_uint32
_SIZE, _SEQUENCE = ctypes.c_size_t, ctypes.c_int32
# Functions of llama.h and ggml.h that the bindings leave out: argument types and result.
_MISSING = {
    "llama_print_system_info": ((), ctypes.c_char_p),
    "llama_log_set": ((_HANDLE, _HANDLE), None),
    "llama_synchronize": ((_HANDLE,), None),
    "llama_kv_cache_seq_rm": ((_HANDLE, _SEQUENCE, ctypes.c_int32, ctypes.c_int32), ctypes.c_bool),
    "llama_state_seq_get_size": ((_HANDLE, _SEQUENCE, _FLAGS), _SIZE),
    "llama_state_seq_get_data": ((_HANDLE, _HANDLE, _SIZE, _SEQUENCE, _FLAGS), _SIZE),
    "llama_state_seq_set_data": ((_HANDLE, _HANDLE, _SIZE, _SEQUENCE, _FLAGS), _SIZE),
    "llama_model_size": ((_HANDLE,), ctypes.c_uint64),
    "llama_get_model_tensor": ((_HANDLE, ctypes.c_char_p), _HANDLE),
    "ggml_nbytes": ((_HANDLE,), _SIZE),
}


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _silent(_level: int, _text: bytes, _data: int | None) -> None:
    """Drop a log message of the library."""


def _bind() -> SimpleNamespace:
    """Return the functions of the bindings and those of `_MISSING`. Raises AttributeError if the library lacks one."""
    functions = {name: value for name, value in vars(api).items() if name.startswith("llama_")}
    for name, (arguments, result) in _MISSING.items():
        function = getattr(api._lib, name)
        function.argtypes, function.restype = arguments, result
        functions[name] = function
    return SimpleNamespace(**functions)


library = _bind()


class IkModel:
    """Weights of one GGUF file. Raises RuntimeError if ik_llama.cpp refuses it."""

    def __init__(self, path: Path, *, repack: bool, threads: int) -> None:
        library.llama_log_set(_silent, None)
        library.llama_backend_init()
        params = library.llama_model_default_params()
        params.repack_tensors = repack
        params.n_gpu_layers = 0
        self.threads = threads
        self.handle = library.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            raise RuntimeError(f"ik_llama.cpp could not load {path}")
        self.vocab_size = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self.handle))

    def bytes_per_token(self) -> int:
        """Return the bytes of weights read per decoded token; the embedding counts only if it is also the head.

        The library counts a tied embedding twice, so it is subtracted once in either case.
        """
        embedding = library.llama_get_model_tensor(self.handle, b"token_embd.weight")
        return int(library.llama_model_size(self.handle) - library.ggml_nbytes(embedding))


class IkContext(BatchedContext):
    """KV cache of `size` positions, with prefill and decode. Raises RuntimeError if ik_llama.cpp refuses it.

    Fused operations and reused graphs keep the library's defaults, which are on.
    """

    layout = IK_LLAMA_CPP

    def __init__(self, model: IkModel, setting: Setting, size: int) -> None:
        params = library.llama_context_default_params()
        params.n_ctx = size
        params.n_batch = params.n_ubatch = setting.ubatch
        params.n_threads = params.n_threads_batch = model.threads
        params.flash_attn = setting.flash
        params.type_k, params.type_v = KV_TYPES[setting.keys], KV_TYPES[setting.values]
        params.offload_kqv = False
        context = library.llama_init_from_model(model.handle, params)
        if not context:
            raise RuntimeError(f"ik_llama.cpp refuses {setting}")
        super().__init__(library, context, setting.ubatch)

    def _truncate(self, length: int) -> None:
        if not library.llama_kv_cache_seq_rm(self._context, 0, length, -1):
            raise RuntimeError(f"ik_llama.cpp cannot cut its cache back to {length}")
        self._length = length

    def _save(self) -> bytes:
        size = library.llama_state_seq_get_size(self._context, 0, 0)
        buffer = (ctypes.c_uint8 * size)()
        written = library.llama_state_seq_get_data(self._context, buffer, size, 0, 0)
        return bytes(buffer)[:written]

    def _load(self, state: bytes) -> bool:
        self._truncate(0)
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        return bool(library.llama_state_seq_set_data(self._context, buffer, len(state), 0, 0))


def about() -> dict[str, str]:
    """Return the version of the package, and the library's own description of its instruction sets."""
    return {"version": version("ik-llama-cpp-python"), "system_info": library.llama_print_system_info().decode()}


def quantise(source: Path, destination: Path, kind: str) -> None:
    """Quantise a GGUF file with the program of the package. Raises CalledProcessError or FileNotFoundError."""
    program = find_quantize_bin()
    if program is None:
        raise FileNotFoundError("ik-llama-cpp-python has no llama-quantize; install the package again")
    subprocess.run([program, source, destination, kind], check=True, stdout=subprocess.DEVNULL, stderr=sys.stderr)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="ik_llama.cpp for benchmarks.vs_llama_cpp")
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("quantise", help="quantise a GGUF file")
    command.add_argument("source", type=Path)
    command.add_argument("destination", type=Path)
    command.add_argument("kind", help="type such as IQ4_KS")
    options = parser.parse_args()
    if options.command == "quantise":
        quantise(options.source, options.destination, options.kind)
    else:
        print(json.dumps(about()))


if __name__ == "__main__":
    main()
