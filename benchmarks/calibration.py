"""Calibration of one or two layers with the shapes of Qwen2-7B: time by operation count, time measured, peak memory.

    python -m benchmarks.calibration [--tokens 16384] [--layers 1] [--shapes 7b]

The model is random and has no vocabulary to speak of: embedding and head take no part in the work of a layer.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from quant.calibration import StatisticsWriter, block_sizes, input_columns
from quant.families import expected_tensors, parse_config
from quant.model_config import ModelConfig
from quant.sources import open_source
from qwchat.calibration.collect import collect, required_memory, statistics_header
from qwchat.calibration.source_tensors import SourceTensors
from qwchat.calibration.windows_of_text import WINDOW
from qwchat.cpu.kernels.thread_counts import default_threads

VOCABULARY = 512
SHAPES = {
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2},
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4},
}
WHOLE = {"0.5b": 24, "1.5b": 28, "7b": 28}
_CHUNK = 1 << 22


def write_random_model(folder: Path, shapes: str, layers: int) -> None:
    """Write a random bf16 checkpoint of a few layers."""
    folder.mkdir()
    config = {
        "model_type": "qwen2",
        "hidden_act": "silu",
        "num_hidden_layers": layers,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": WINDOW,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "torch_dtype": "bfloat16",
        **SHAPES[shapes],
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    tensors = expected_tensors(parse_config(config))
    header, offset = {}, 0
    for name, shape in tensors.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    random = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in tensors.values():
            count, scale = int(np.prod(shape)), np.float32(shape[-1] ** -0.5)
            for start in range(0, count, _CHUNK):
                values = random.standard_normal(min(_CHUNK, count - start), np.float32) * scale
                if len(shape) == 1:
                    values += 1
                file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())


def operations(config: ModelConfig, tokens: int) -> tuple[float, float]:
    """Return the floating-point operations of one layer: of its matrices and attention, and of the sums."""
    weights = sum(
        float(np.prod(shape))
        for name, shape in expected_tensors(config).items()
        if ".layers.0." in name and len(shape) == 2
    )
    attention = 2 * 2 * config.num_heads * config.head_dim * tokens * WINDOW / 2
    sums = sum(
        float(size * size) * tokens
        for name, columns in input_columns(config).items()
        if ".layers.0." in name
        for size in block_sizes(columns)
    )
    return 2 * weights * tokens + attention, sums


def peak_memory() -> float:
    """Return the largest memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def product_rate(threads_hint: int) -> float:
    """Return the rate of a large float32 product in NumPy, in operations per second."""
    x = np.random.default_rng(0).standard_normal((1024, 2048), np.float32)
    x @ x.T
    best = 1e9
    for _ in range(5):
        began = time.perf_counter()
        x @ x.T
        best = min(best, time.perf_counter() - began)
    return 2 * 1024 * 1024 * 2048 / best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--shapes", choices=SHAPES, default="7b")
    parser.add_argument("--threads", type=int, default=default_threads())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        write_random_model(model, options.shapes, options.layers)
        random = np.random.default_rng(1)
        pieces = [
            random.integers(0, VOCABULARY, min(WINDOW, options.tokens - start))
            for start in range(0, options.tokens, WINDOW)
        ]
        with open_source(model) as source, StatisticsWriter(Path(scratch) / "statistics") as writer:
            before = peak_memory()
            forward, sums = operations(source.config, options.tokens)
            expected = required_memory(source.config, options.tokens) / 1e9
            writer.open_folder(resume=False)
            writer.begin(statistics_header(source.config, source.fingerprint, pieces, "random tokens"))
            began = time.perf_counter()
            for _ in collect(SourceTensors(source, options.threads), pieces, writer, options.threads):
                pass
            seconds = (time.perf_counter() - began) / options.layers
        rate = product_rate(options.threads)
    total = WHOLE[options.shapes] * seconds
    print(f"{options.shapes}, {options.tokens:,} tokens, {options.threads} threads, per layer:")
    print(f"  operations  {forward / 1e12:.2f} T in the layer, {sums / 1e12:.2f} T in the sums")
    print(f"  counted     {(forward + sums) / rate:.1f} s at the {rate / 1e9:.0f} GFLOP/s of a NumPy product")
    print(f"  measured    {seconds:.1f} s; {WHOLE[options.shapes]} layers: {total / 60:.1f} min")
    print(f"  memory      {peak_memory():.2f} GB at the peak ({before:.2f} GB before), {expected:.2f} GB counted")


if __name__ == "__main__":
    main()
