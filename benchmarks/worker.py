"""Run one engine in a process of its own: it reads requests as JSON lines from stdin and answers on stdout.

    python -m benchmarks.worker qwchat MODEL --threads 2
    python -m benchmarks.worker llama.cpp FILE.gguf --threads 2 --repack
    IK_PYTHON -m benchmarks.worker ik_llama.cpp FILE.gguf --threads 2 --repack

A request has an `op`, which names a method of a class below, and its arguments. The answer is the method's result, or
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
from benchmarks.engines import ENGINES


class EngineContext(Protocol):
    """Operations of a context that all engines implement."""

    def prefill(self, tokens: list[int]) -> float:
        """Return the seconds of evaluating `tokens` from an empty cache."""

    def decode(self, depth: int, count: int) -> float:
        """Return the seconds of `count` steps at a depth that was filled."""

    def fill(self, tokens: list[int]) -> bool:
        """Fill the cache. Return True if copies of a few positions were enough."""

    def close(self) -> None:
        """Free the context."""


class Worker:
    """Open contexts by key, over the weights of one model."""

    def __init__(self) -> None:
        self.contexts: dict[str, EngineContext] = {}
        self.vocab_size = 1

    def make(self, setting: Setting, size: int) -> EngineContext:
        """Return a context of `size` positions and set `vocab_size`."""
        raise NotImplementedError

    def open(self, key: str, setting: dict[str, Any], size: int) -> dict[str, Any]:
        """Open a context and return the seconds, including loading the weights for the first one."""
        started = time.perf_counter()
        self.contexts[key] = self.make(Setting(**setting), size)
        return {"seconds": time.perf_counter() - started}

    def prefill(self, key: str, tokens: int, seed: int) -> dict[str, Any]:
        """Evaluate random tokens into the empty cache."""
        return {"seconds": self.contexts[key].prefill(self.draw(tokens, seed))}

    def fill(self, key: str, depth: int) -> dict[str, Any]:
        """Fill the cache with `depth` positions."""
        return {"copied": self.contexts[key].fill(self.draw(depth, 0))}

    def decode(self, key: str, depth: int, count: int) -> dict[str, Any]:
        """Generate `count` tokens at a `depth` that was filled."""
        return {"seconds": self.contexts[key].decode(depth, count)}

    def close(self) -> dict[str, Any]:
        """Close all contexts."""
        for context in self.contexts.values():
            context.close()
        self.contexts = {}
        return {}

    def draw(self, count: int, seed: int) -> list[int]:
        """Return random token ids from the first half of the vocabulary, which has no control tokens."""
        drawn = random.Random(seed)
        return [drawn.randrange(self.vocab_size // 2) for _ in range(count)]


class QwchatWorker(Worker):
    """Worker of this project's engine, which also probes the machine."""

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__()
        from benchmarks.qwchat_engine import QwchatContext

        self._context, self._path, self._threads = QwchatContext, path, threads

    def make(self, setting: Setting, size: int) -> EngineContext:
        """Open the model with a cache of `size` positions."""
        context = self._context(self._path, setting.keys, size, self._threads)
        self.vocab_size = context.vocab_size
        return context

    def probe(self) -> dict[str, Any]:
        """Measure the read bandwidth and the int8 peak of the machine."""
        from qwchat.cpu.kernels.probe import int8_peak, read_bandwidth

        return {"read_bandwidth": read_bandwidth(self._threads), "int8_peak": int8_peak(self._threads)}

    def work(self) -> dict[str, Any]:
        """Return the bytes of weights read per decoded token, and the operations per prompt token."""
        from quant.container import open_model
        from qwchat.cli.bench import token_cost

        return vars(token_cost(open_model(self._path)))


class RivalWorker(Worker):
    """Worker of a library with the interface of llama.cpp, which loads the weights for the first context."""

    def __init__(self, path: Path, threads: int, repack: bool) -> None:
        super().__init__()
        self._path, self._threads, self._repack = path, threads, repack
        self._model: Any = None

    def load(self) -> Any:
        """Return the model with its weights."""
        raise NotImplementedError

    def open_context(self, setting: Setting, size: int) -> EngineContext:
        """Return a context of the model."""
        raise NotImplementedError

    def make(self, setting: Setting, size: int) -> EngineContext:
        """Load the weights for the first context, and open one of `size` positions."""
        if self._model is None:
            self._model = self.load()
            self.vocab_size = self._model.vocab_size
        return self.open_context(setting, size)


class LlamaWorker(RivalWorker):
    """Worker of llama.cpp."""

    def load(self) -> Any:
        """Load the file with llama.cpp."""
        from benchmarks.llama_engine import LlamaModel

        return LlamaModel(self._path, repack=self._repack, threads=self._threads)

    def open_context(self, setting: Setting, size: int) -> EngineContext:
        """Open a context of llama.cpp."""
        from benchmarks.llama_engine import LlamaContext

        return LlamaContext(self._model, setting, size)

    def work(self) -> dict[str, Any]:
        """Return the bytes of weights read per decoded token.

        The embedding counts only if it is also the head.
        """
        import gguf

        sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(self._path).tensors}
        if "output.weight" in sizes:
            del sizes["token_embd.weight"]
        return {"bytes_per_token": sum(sizes.values())}


class IkWorker(RivalWorker):
    """Worker of ik_llama.cpp."""

    def load(self) -> Any:
        """Load the file with ik_llama.cpp."""
        from benchmarks.ik_engine import IkModel

        return IkModel(self._path, repack=self._repack, threads=self._threads)

    def open_context(self, setting: Setting, size: int) -> EngineContext:
        """Open a context of ik_llama.cpp."""
        from benchmarks.ik_engine import IkContext

        return IkContext(self._model, setting, size)

    def work(self) -> dict[str, Any]:
        """Return the bytes of weights read per decoded token."""
        if self._model is None:
            self._model = self.load()
        return {"bytes_per_token": self._model.bytes_per_token()}


RIVALS = {"llama.cpp": LlamaWorker, "ik_llama.cpp": IkWorker}


def main() -> None:
    """Answer requests until stdin ends."""
    parser = argparse.ArgumentParser(description="one engine, driven by JSON lines")
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repack", action="store_true")
    options = parser.parse_args()
    # Output of a library must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = (
        QwchatWorker(options.path, options.threads)
        if options.engine == "qwchat"
        else RIVALS[options.engine](options.path, options.threads, options.repack)
    )
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("op"))(**request)
        except Exception as error:  # noqa: BLE001 - the parent process reports all errors of an engine
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
