"""Measure decode and prefill with activations of 16 bits beside 8 bits, on the same weights.

    python -m benchmarks.activations
    QWCHAT_SIMD=avx2 python -m benchmarks.activations --shapes 0.5B --formats q8 q4

Weights are random and in memory of their own, so that decode reads as much as from a file. Both decoders share them. In
each round a prompt and some tokens after it are evaluated with 8, 16, 16 and 8 bits. A ratio is the median over the
rounds of the speed with 16 bits by that with 8.

Prints a table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.context_timing import time_reply
from benchmarks.imported_formats import ResidentModel
from benchmarks.measurements import Conditions, Limit, Measurement, add_results_option, append
from benchmarks.random_model import shape_config
from qwchat.chat.view.table import format_table
from qwchat.cpu.build import build_decoder
from qwchat.cpu.kernels.thread_counts import default_threads
from qwchat.generation.cached_context import CachedContext

BITS = (8, 16)
SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": {},
    "1.5B": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
}
"""Changes of the sizes of Qwen2-0.5B."""
CONTEXT, PROMPT, REPLY = 512, 256, 24


@dataclass
class Pair:
    """One model with activations of 8 and 16 bits, and its rates in tokens per second, by round."""

    shape: str
    format: str
    rates: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def ratio(self, cell: str) -> float:
        """Return the speed of `cell` with 16 bits by that with 8 bits."""
        return statistics.median(self.ratios(cell))

    def ratios(self, cell: str) -> list[float]:
        """Return the ratio of each round."""
        eight, sixteen = (self.rates[cell, bits] for bits in BITS)
        return [slow / fast for fast, slow in zip(eight, sixteen, strict=True)]


def measure(shape: str, name: str, rounds: int, threads: int) -> Pair:
    """Measure a shape in a format."""
    model, pair = ResidentModel(shape_config("0.5B", **SHAPES[shape]), name), Pair(shape, name)
    contexts = {
        bits: CachedContext(build_decoder(model, threads=threads, context=CONTEXT, kv="f32", activations=bits))
        for bits in BITS
    }
    for context in contexts.values():
        _seconds(context)
    for _ in range(rounds):
        found: dict[tuple[str, int], list[float]] = {}
        for bits in (8, 16, 16, 8):
            for cell, seconds in _seconds(contexts[bits]).items():
                found.setdefault((cell, bits), []).append(seconds)
        for (cell, bits), seconds_of_both in found.items():
            tokens = PROMPT if cell == "prefill" else REPLY
            pair.rates.setdefault((cell, bits), []).append(2 * tokens / sum(seconds_of_both))
    for context in contexts.values():
        context.decoder.close()
    return pair


def _seconds(context: CachedContext) -> dict[str, float]:
    """Return the time of one prompt, and of the tokens after it."""
    prefill, decode = time_reply(context, PROMPT, REPLY, time.perf_counter)
    return {"decode": decode, "prefill": prefill}


def as_table(pairs: Sequence[Pair]) -> str:
    """Return a table with a row per model."""
    rows = []
    for pair in pairs:
        cells = []
        for cell in ("decode", "prefill"):
            cells += [f"{statistics.median(pair.rates[cell, bits]):,.1f}" for bits in BITS]
            cells.append(f"{pair.ratio(cell):.2f}")
        rows.append((pair.shape, pair.format, *cells))
    head = ("shape", "format", "decode, 8 bits", "16", "ratio", "prefill, 8 bits", "16", "ratio")
    return format_table(head, rows, right=(2, 3, 4, 5, 6, 7))


def as_measurements(pairs: Sequence[Pair], conditions: Conditions) -> list[Measurement]:
    """Return the ratios; their limit is the speed with 8 bits, 1."""
    return [
        Measurement(
            conditions,
            f"qwen2-{pair.shape.lower()}",
            "qwchat",
            pair.format,
            cell,
            PROMPT if cell == "prefill" else REPLY,
            pair.ratio(cell),
            "of 8 bits",
            min(pair.ratios(cell)),
            max(pair.ratios(cell)),
            Limit("8 bits", 1.0),
        )
        for pair in pairs
        for cell in ("decode", "prefill")
    ]


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES), help="models to measure")
    parser.add_argument("--formats", nargs="+", default=["q8"], help="formats of the weights")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each model")
    add_results_option(parser)
    options = parser.parse_args()
    threads = default_threads()
    pairs = [measure(shape, name, options.rounds, threads) for shape in options.shapes for name in options.formats]
    print(as_table(pairs))
    append(options.results, as_measurements(pairs, Conditions.of_this_run("activations", threads)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
