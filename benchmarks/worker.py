"""One engine in a process of its own, told what to do by JSON lines on stdin and answering on stdout.

    python -m benchmarks.worker qwchat MODEL --threads 2
    python -m benchmarks.worker llama.cpp FILE.gguf --threads 2 --repack

Requests have an `op`, the name of a function of a class below, and its arguments; the answer is what it returns, or
{"error": text}. See benchmarks.vs_llama_cpp.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from benchmarks.cells import Setting


class Context(Protocol):
    """What both engines can do."""

    def prefill(self, tokens: list[int]) -> float: ...
    def decode(self, depth: int, count: int) -> float: ...
    def fill(self, tokens: list[int]) -> bool: ...
    def close(self) -> None: ...


class Worker:
    """Contexts by key, over the weights of one model."""

    def __init__(self) -> None:
        self.contexts: dict[str, Context] = {}
        self.vocab_size = 1

    def make(self, setting: Setting, size: int) -> Context:
        """A context; sets `vocab_size`."""
        raise NotImplementedError

    def open(self, key: str, setting: dict[str, Any], size: int) -> dict[str, Any]:
        """Seconds from nothing (or from the weights, if another context is open) to a context."""
        started = time.perf_counter()
        self.contexts[key] = self.make(Setting(**setting), size)
        return {"seconds": time.perf_counter() - started}

    def prefill(self, key: str, tokens: int, seed: int) -> dict[str, Any]:
        """Read random tokens into the empty cache."""
        return {"seconds": self.contexts[key].prefill(self.draw(tokens, seed))}

    def fill(self, key: str, depth: int) -> dict[str, Any]:
        """Bring the cache to `depth` positions."""
        return {"copied": self.contexts[key].fill(self.draw(depth, 0))}

    def decode(self, key: str, depth: int, count: int) -> dict[str, Any]:
        """Take `count` steps from a `depth` that was filled."""
        return {"seconds": self.contexts[key].decode(depth, count)}

    def close(self) -> dict[str, Any]:
        """Close all contexts."""
        for context in self.contexts.values():
            context.close()
        self.contexts = {}
        return {}

    def draw(self, count: int, seed: int) -> list[int]:
        """Token ids from the first half of the vocabulary, where no control tokens are."""
        drawn = random.Random(seed)
        return [drawn.randrange(self.vocab_size // 2) for _ in range(count)]


class QwchatWorker(Worker):
    """The engine of this project, and the probes of the machine."""

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__()
        from benchmarks.qwchat_engine import QwchatContext

        self._context, self._path, self._threads = QwchatContext, path, threads

    def make(self, setting: Setting, size: int) -> Context:
        context = self._context(self._path, setting.keys, size, self._threads)
        self.vocab_size = context.vocab_size
        return context

    def probe(self) -> dict[str, Any]:
        """Read bandwidth and int8 peak of the machine, now."""
        from qwchat.cpu.kernels.probe import int8_peak, read_bandwidth

        return {"read_bandwidth": read_bandwidth(self._threads), "int8_peak": int8_peak(self._threads)}

    def work(self) -> dict[str, Any]:
        """Bytes of weights that a decoded token reads, operations that a prompt token takes."""
        from quant.container import open_model
        from qwchat.cli.bench import token_cost

        return vars(token_cost(open_model(self._path)))


class LlamaWorker(Worker):
    """llama.cpp."""

    def __init__(self, path: Path, threads: int, repack: bool) -> None:
        super().__init__()
        import benchmarks.llama_engine as engine

        self._engine, self._path, self._threads, self._repack = engine, path, threads, repack
        self._model: engine.LlamaModel | None = None

    def make(self, setting: Setting, size: int) -> Context:
        if self._model is None:
            self._model = self._engine.LlamaModel(self._path, repack=self._repack, threads=self._threads)
            self.vocab_size = self._model.vocab_size
        return self._engine.LlamaContext(self._model, setting, size)

    def work(self) -> dict[str, Any]:
        """Bytes of weights that a decoded token reads: all, but the embedding where the head is a tensor of its own."""
        import gguf

        sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(self._path).tensors}
        if "output.weight" in sizes:
            del sizes["token_embd.weight"]
        return {"bytes_per_token": sum(sizes.values())}


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(description="one engine, driven by JSON lines")
    parser.add_argument("engine", choices=("qwchat", "llama.cpp"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repack", action="store_true")
    options = parser.parse_args()
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = (
        QwchatWorker(options.path, options.threads)
        if options.engine == "qwchat"
        else LlamaWorker(options.path, options.threads, options.repack)
    )
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("op"))(**request)
        except Exception as error:  # noqa: BLE001 - whatever an engine refuses is the parent's to report
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
