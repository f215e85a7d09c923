"""Quantise GGUF files and evaluate token ids with llama.cpp, for the comparisons of this folder.

    python -m benchmarks.llama_logits quantise CHECKPOINT FOLDER Q4_0 Q4_K_M
    python -m benchmarks.llama_logits encode FILE.gguf OUTPUT.gguf Q4_K_M [--importance IMPORTANCE.npz]
    python -m benchmarks.llama_logits logits FILE.gguf IDS.json LOGITS.npz
    python -m benchmarks.llama_logits greedy FILE.gguf IDS.json 64

It runs in an environment that has llama-cpp-python and need not have qwchat. IDS.json holds lists of token ids.
`encode` quantises a bf16 file and prints the seconds and the types of the tensors; IMPORTANCE.npz holds the mean square
of each input column by the names of matrices. `logits` writes one array (tokens, vocabulary) f32 per list, `greedy`
prints the ids that follow each list as JSON. The KV cache is in f32 and flash attention off, so that activations are
rounded in matrix products alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from benchmarks.gguf_files import make_gguf, quantise_gguf
from benchmarks.llama_engine import LlamaModel

THREADS = 2


class Evaluator:
    """Context of a model that returns the logits of every token. Raises RuntimeError if llama.cpp refuses it."""

    def __init__(self, model: LlamaModel, size: int) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = size
        params.n_threads = params.n_threads_batch = model.threads
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        params.offload_kqv = params.op_offload = False
        self._context = llama_cpp.llama_init_from_model(model.handle, params)
        if not self._context:
            raise RuntimeError("llama.cpp refuses the context")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(size, 0, 1)
        self._vocab_size, self._length = model.vocab_size, 0

    def restart(self) -> None:
        """Empty the KV cache."""
        llama_cpp.llama_memory_clear(self._memory, True)
        self._length = 0

    def evaluate(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Append `ids` and return the logits (tokens, vocabulary)."""
        batch = self._batch
        for index, token in enumerate(ids):
            batch.token[index], batch.pos[index] = token, self._length + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = 1
        batch.n_tokens = len(ids)
        if status := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode gave {status}")
        self._length += len(ids)
        rows = [llama_cpp.llama_get_logits_ith(self._context, index) for index in range(len(ids))]
        return np.stack([np.ctypeslib.as_array(row, (self._vocab_size,)).copy() for row in rows])

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """Return the `count` most likely ids behind `ids`, one after the other."""
        self.restart()
        found: list[int] = []
        logits = self.evaluate(ids)
        for _ in range(count):
            found.append(int(logits[-1].argmax()))
            logits = self.evaluate(found[-1:])
        return found


def tensor_types(path: Path) -> dict[str, int]:
    """Return the number of tensors of each type in a GGUF file."""
    import gguf

    return dict(Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors))


def encode(options: argparse.Namespace) -> None:
    """Quantise a bf16 file; print the processor and wall seconds and the types of the tensors."""
    importance = None
    if options.importance is not None:
        with np.load(options.importance) as arrays:
            importance = dict(arrays)
    started, busy = time.perf_counter(), time.process_time()
    quantise_gguf(options.file, options.output, options.kind, options.threads, importance)
    seconds = {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - busy}
    json.dump({**seconds, "types": tensor_types(options.output)}, sys.stdout)


def main() -> None:
    """Run one operation."""
    parser = argparse.ArgumentParser(description="llama.cpp for benchmarks.llama_parity")
    commands = parser.add_subparsers(dest="command", required=True)
    quantise = commands.add_parser("quantise")
    quantise.add_argument("checkpoint", type=Path)
    quantise.add_argument("folder", type=Path)
    quantise.add_argument("kinds", nargs="+")
    for name, last in (("logits", "output"), ("greedy", "count")):
        command = commands.add_parser(name)
        command.add_argument("file", type=Path)
        command.add_argument("ids", type=Path)
        command.add_argument(last, type=Path if last == "output" else int)
    encoding = commands.add_parser("encode")
    encoding.add_argument("file", type=Path)
    encoding.add_argument("output", type=Path)
    encoding.add_argument("kind")
    encoding.add_argument("--importance", type=Path)
    encoding.add_argument("--threads", type=int, default=THREADS)
    options = parser.parse_args()
    if options.command == "encode":
        encode(options)
        return
    if options.command == "quantise":
        files = make_gguf(options.checkpoint, options.folder, options.kinds, THREADS)
        json.dump({kind: {"path": str(path), "types": tensor_types(path)} for kind, path in files.items()}, sys.stdout)
        return
    lists = json.loads(options.ids.read_text())
    model = LlamaModel(options.file, repack=False, threads=THREADS)
    evaluator = Evaluator(model, max(map(len, lists)) + getattr(options, "count", 0) + 1)
    if options.command == "greedy":
        json.dump([evaluator.greedy(ids, options.count) for ids in lists], sys.stdout)
        return
    logits = []
    for ids in lists:
        evaluator.restart()
        logits.append(evaluator.evaluate(ids))
    np.savez(options.output, *logits)


if __name__ == "__main__":
    main()
