"""Measure kernels and whole decoders on an NVIDIA GPU.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --sections copy decode --shapes 0.5B

The sections, in this order:

    kernels       run the tests of the kernels on the GPU instead of on the interpreter (needs pytest)
    copy          bytes per second of a copy within the GPU's memory: the limit of everything that follows
    stages        time of each stage of a decode step, and its bytes per second
    nodes         cost of a launch in a graph, with and without programmatic dependent launch
    decode        tokens per second, one at a time and in a pass of 8, at three depths
    prefill       tokens per second of a prompt of 2,048 tokens
    transformers  the same decode by transformers in bf16 (needs torch)

Weights are random. Prints a table for each section, and one JSON line last.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.gpu_timing import copy_bandwidth, node_seconds, stage_times
from benchmarks.random_model import SHAPES, RandomModel, shape_config
from qwchat.cuda.decoder import CudaDecoder
from qwchat.cuda.device import Gpu, OpenGpu, find_gpus, select_gpu
from qwchat.cuda.driver import Driver
from qwchat.cuda.manifest import PTX_FOLDER
from qwchat.model.gpu_memory import DevicePart, choose_kv_kind, gpu_memory, stored_tensors

SECTIONS = ("kernels", "copy", "stages", "nodes", "decode", "prefill", "transformers")
DEPTHS = (0, 4096, 32768)
PROMPT_TOKENS = 2048
STEPS = 48
KERNEL_TESTS = tuple(
    f"tests/cuda/test_{name}.py"
    for name in (
        *("interpreter_integers", "interpreter_floats", "interpreter_warps", "interpreter_memory", "copy"),
        *("gemv", "gemv_dense", "embedding", "decode_attention", "candidates"),
        *("gemm", "prefill_rows", "prefill_attention"),
    )
)
_CONTEXT = 32768 + 1024
_TINY = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}

Figures = dict[str, Any]


class Benchmark:
    """Runs sections on one GPU.

    Args:
        driver: the driver, started.
        gpu: the device.
        options: from the command line.
        ptx: folder of the kernels.
    """

    def __init__(self, driver: Driver, gpu: Gpu, options: argparse.Namespace, ptx: Path = PTX_FOLDER) -> None:
        self._driver, self._gpu, self._options, self._ptx = driver, gpu, options, ptx
        self._copy = 0.0
        self._sections: dict[str, Callable[[], Any]] = {
            "kernels": run_kernel_tests,
            "copy": self.copy,
            "stages": self.stages,
            "nodes": self.nodes,
            "decode": self.decode,
            "prefill": self.prefill,
            "transformers": self.transformers,
        }

    def run(self) -> Figures:
        """Run the sections, print their tables, and return all figures."""
        figures: Figures = {"date": date.today().isoformat(), "gpu": asdict(self._gpu), "seconds": {}}
        for name in SECTIONS:
            if name in self._options.sections:
                started = time.perf_counter()
                figures[name] = self._sections[name]()
                figures["seconds"][name] = round(time.perf_counter() - started, 1)
        return figures

    @contextmanager
    def _decoder(self, model: RandomModel, kv: str, context: int = _CONTEXT) -> Iterator[CudaDecoder]:
        """Open a decoder of a model, and free the device afterwards."""
        config, gpu = model.config, OpenGpu(self._driver, self._gpu)
        kind, part = choose_kv_kind(kv, config, context), DevicePart.whole(config)
        decoder = CudaDecoder(model, gpu, context=context, kind=kind, part=part, ptx=self._ptx)
        try:
            yield decoder
        finally:
            decoder.close()
            gc.collect()

    def _models(self) -> Iterator[RandomModel]:
        for shape in self._options.shapes:
            for preset in self._options.presets:
                yield RandomModel(shape_config(shape), preset)

    def copy(self) -> Figures:
        """Measure a copy."""
        with OpenGpu(self._driver, self._gpu) as gpu:
            self._copy = copy_bandwidth(gpu)
        print(f"\ncopy: {self._copy / 1e9:,.0f} GB/s, {self._share(self._copy, self._gpu.bandwidth)} of the bus")
        return {"bytes_per_second": self._copy, "bus": self._gpu.bandwidth}

    def stages(self) -> list[Figures]:
        """Measure each stage of a decode step at depth 0."""
        rows = []
        print(f"\n{'stage':<28}{'us':>8}{'GB/s':>8}{'of copy':>9}")
        for model in self._models():
            with self._decoder(model, "q8", 1024) as decoder:
                for tokens in (1, 8):
                    for each in stage_times(decoder, model, decoder.make_cache(), tokens):
                        name = f"{name_of(model)} {each.stage} x{tokens}"
                        share = self._share(each.bandwidth, self._copy)
                        print(f"{name:<28}{each.seconds * 1e6:>8.1f}{each.bandwidth / 1e9:>8.0f}{share:>9}")
                        rows.append({"model": name_of(model), "tokens": tokens, **asdict(each)})
        return rows

    def nodes(self) -> Figures:
        """Measure the cost of a launch in a graph."""
        config = shape_config("0.5B", **_TINY)
        with self._decoder(RandomModel(config, "q4"), "f32", 1024) as decoder:
            cache = decoder.make_cache()
            found = {
                "graph": node_seconds(decoder, cache, overlap=False),
                "graph_with_overlap": node_seconds(decoder, cache, overlap=True),
            }
        print("\nlaunch: " + ", ".join(f"{name.replace('_', ' ')} {each * 1e6:.2f} us" for name, each in found.items()))
        return found

    def decode(self) -> list[Figures]:
        """Measure decode with an empty and a full cache."""
        rows = []
        print(f"\n{'decode':<18}{'kv':>4}{'depth':>8}{'tok/s':>9}{'8 rows ms':>11}{'device GB':>11}{'estimate':>10}")
        for model in self._models():
            for kv in ("f32", "q8"):
                with self._decoder(model, kv) as decoder:
                    rows += [self._decode(decoder, model, depth) for depth in DEPTHS]
        return rows

    def _decode(self, decoder: CudaDecoder, model: RandomModel, depth: int) -> Figures:
        cache = decoder.make_cache()
        kind = cache.kind
        one = step_seconds(decoder, cache, 1, depth)
        eight = step_seconds(decoder, cache, 8, depth)
        held = sum(decoder.bytes_by_purpose.values())
        tensors = stored_tensors(model.config, model.tensor)
        expected = gpu_memory(model.config, tensors, decoder.context, kind, DevicePart.whole(model.config)).allocated
        print(
            f"{name_of(model):<18}{kind:>4}{depth:>8,}{1 / one:>9.1f}{eight * 1e3:>11.2f}"
            f"{held / 1e9:>11.2f}{expected / 1e9:>10.2f}"
        )
        return {
            "model": name_of(model),
            "kv": kind,
            "depth": depth,
            "tokens_per_second": 1 / one,
            "seconds_of_8_rows": eight,
            "allocated": held,
            "estimate": expected,
        }

    def prefill(self) -> list[Figures]:
        """Measure prefill."""
        rows = []
        print(f"\n{'prefill':<18}{'tokens':>8}{'tok/s':>10}")
        for model in self._models():
            with self._decoder(model, "q8", PROMPT_TOKENS + 64) as decoder:
                seconds = prefill_seconds(decoder, PROMPT_TOKENS)
            print(f"{name_of(model):<18}{PROMPT_TOKENS:>8,}{PROMPT_TOKENS / seconds:>10,.0f}")
            rows.append(
                {"model": name_of(model), "tokens": PROMPT_TOKENS, "tokens_per_second": PROMPT_TOKENS / seconds}
            )
        return rows

    def transformers(self) -> list[Figures]:
        """Measure transformers, where it is installed."""
        rows = []
        for shape in self._options.shapes:
            rate = transformers_rate(shape)
            if rate is not None:
                print(f"\ntransformers {shape} bf16: {rate:.1f} tok/s")
                rows.append({"model": shape, "tokens_per_second": rate})
        return rows

    @staticmethod
    def _share(value: float, limit: float) -> str:
        return f"{value / limit:.0%}" if limit else "-"


def name_of(model: RandomModel) -> str:
    """Return a name such as `7B q4`."""
    sizes = {shape: fields["hidden_size"] for shape, fields in SHAPES.items()}
    shape = next((shape for shape, hidden in sizes.items() if hidden == model.config.hidden_size), "tiny")
    return f"{shape} {model.preset}"


def step_seconds(decoder: CudaDecoder, cache: Any, rows: int, depth: int) -> float:
    """Return the median time of a pass of `rows` tokens at `depth`, with everything that the host does for it."""
    ids = np.arange(rows, dtype=np.int64)
    times = []
    for _ in range(STEPS + 3):
        started = time.perf_counter()
        found = decoder.run_rows(ids, depth, 0, cache)
        times.append(time.perf_counter() - started)
        assert len(found) == rows
    return median(times[3:])


def prefill_seconds(decoder: CudaDecoder, tokens: int, rounds: int = 5) -> float:
    """Return the median time of a prompt."""
    cache, times = decoder.make_cache(), []
    ids = np.random.default_rng(0).integers(0, decoder.config.vocab_size, tokens)
    for _ in range(rounds + 1):
        started = time.perf_counter()
        for start in range(0, tokens, decoder.chunk):
            piece = ids[start : start + decoder.chunk]
            decoder.run_rows(piece, start, len(piece) - (start + len(piece) == tokens), cache)
        times.append(time.perf_counter() - started)
    return median(times[1:])


def run_kernel_tests() -> Figures:
    """Run the tests of the kernels on the GPU, and print their summary."""
    # Without the project's options, which need plugins that this machine may lack.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-o",
        "addopts=--import-mode=importlib",
        "-o",
        "strict_config=false",
    ]
    command += ["-m", "not interpreter_only and not slow", *KERNEL_TESTS]
    environment = os.environ | {"QWCHAT_TEST_GPU": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()[-200:]
    print("kernels: " + summary, *lines[:40], sep="\n")
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", summary)}
    return {**counts, "failures": lines}


def transformers_rate(shape: str) -> float | None:
    """Return the tokens per second of transformers' Qwen2 in bf16; None where it cannot run."""
    try:
        import torch
        from transformers import Qwen2Config, Qwen2ForCausalLM
    except ImportError:
        return None
    config = Qwen2Config(**SHAPES[shape], max_position_embeddings=4096)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"), torch.inference_mode():
            model = Qwen2ForCausalLM(config).eval()
            output = model(input_ids=torch.zeros((1, 1), dtype=torch.long), use_cache=True)
            times = []
            for _ in range(STEPS):
                torch.cuda.synchronize()
                started = time.perf_counter()
                last = output.logits[:, -1:].argmax(-1)
                output = model(input_ids=last, past_key_values=output.past_key_values, use_cache=True)
                torch.cuda.synchronize()
                times.append(time.perf_counter() - started)
            return 1 / median(times[8:])
    finally:
        torch.set_default_dtype(torch.float32)
        torch.cuda.empty_cache()


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="kernels and decoders on an NVIDIA GPU")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=tuple(SHAPES))
    parser.add_argument("--presets", nargs="+", choices=("q4", "q8"), default=("q4", "q8"))
    parser.add_argument("--device", type=int, help="number of the GPU")
    options = parser.parse_args()
    from qwchat.cuda.libcuda import LibCuda

    driver = LibCuda()
    gpu = select_gpu(find_gpus(driver), options.device)
    print(f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}, {gpu.multiprocessors} SMs")
    figures = Benchmark(driver, gpu, options).run()
    print(json.dumps(figures))
    return 1 if figures.get("kernels", {}).get("failed") else 0


if __name__ == "__main__":
    raise SystemExit(main())
