"""Compute how much memory the KV cache takes, for context windows of several lengths.

    python -m benchmarks.kv_memory qwen2-0.5b-instruct qwen2-7b-instruct --results FILE

Nothing is timed and no weights are needed: a cache is laid out for the shape of each model, and the bytes of its parts
are added up. The kind of cache that `--kv auto` chooses is marked. The last length for which it chooses f32 and the
first for which it chooses q8 are among the lengths.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.make_checkpoint import PUBLISHED, read_config
from benchmarks.measurements import Conditions, Measurement, add_results_option, append
from quant.families import parse_config
from quant.model_config import ModelConfig
from qwchat.chat.view.table import format_table
from qwchat.cpu.kv_cache import KVCache, choose_kv_kind
from qwchat.limits import EXACT_CACHE_BYTES

KINDS = ("f32", "q8")
CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)
CHOSEN = "chosen by auto"


def cache_bytes(config: ModelConfig, kind: str, context: int) -> int:
    """Return the bytes of a KV cache of `context` tokens. Raises NotEnoughMemoryError if it does not fit."""
    cache = KVCache(config, context, kind, range(config.num_layers))
    return sum(part.nbytes for layer in cache.layers for part in cache.segments(layer, cache.capacity))


def lengths(config: ModelConfig, contexts: Iterable[int]) -> list[int]:
    """Return `contexts` with the two capacities between which `auto` changes from f32 to q8."""
    step = KVCache(config, 1, "f32", range(1)).capacity
    last_exact = EXACT_CACHE_BYTES // cache_bytes(config, "f32", step) * step
    return sorted({*contexts, last_exact, last_exact + step})


def measure(
    conditions: Conditions, model: str, values: dict[str, Any], contexts: Sequence[int]
) -> Iterator[Measurement]:
    """Yield the bytes of every kind of cache at every length for the config.json `values` of a model."""
    config = parse_config(values)
    for context in lengths(config, contexts):
        for kind in KINDS:
            chosen = CHOSEN if choose_kv_kind("auto", config, context) == kind else None
            size = cache_bytes(config, kind, context)
            yield Measurement(conditions, model, "qwchat", kind, "KV cache", context, size, "bytes", note=chosen)


def as_text(measurements: Sequence[Measurement]) -> str:
    """Return a table with a row for each model and length."""
    rows: dict[tuple[str, int | None], list[str]] = {}
    for each in measurements:
        mark = " *" if each.note else "  "
        rows.setdefault((each.model or "", each.size), []).append(f"{each.figure / 1e6:,.1f} MB{mark}")
    lines = [(model, f"{size:,}", *figures) for (model, size), figures in rows.items()]
    return format_table(("model", "tokens", *KINDS), lines, right=(1, 2, 3)) + f"\n\n* {CHOSEN}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shapes", nargs="+", help="names in shapes.json, or config.json files")
    parser.add_argument("--contexts", type=int, nargs="+", default=list(CONTEXTS), help="lengths in tokens")
    parser.add_argument("--published", type=Path, default=PUBLISHED, help="folder of shapes.json")
    add_results_option(parser)
    options = parser.parse_args()
    # The layout is the same on every machine, at every SIMD level and with any number of threads.
    conditions = replace(Conditions.of_this_run("kv_memory", None), machine="any machine", simd=None)
    measurements = [
        each
        for shape in options.shapes
        for each in measure(conditions, shape, read_config(shape, options.published), options.contexts)
    ]
    print(as_text(measurements))
    append(options.results, measurements)


if __name__ == "__main__":
    main()
