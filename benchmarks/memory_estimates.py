"""Compare `qwchat estimate` with the resident memory of a process whose context window is full.

    python -m benchmarks.memory_estimates qwen2-0.5b-instruct qwen2-1.5b-instruct qwen2-7b-instruct --results FILE

Each cell runs in a process of its own, on a model folder of zeros in the real shape, since memory does not depend on
values. The process loads the model and the modules of a chat, evaluates a chunk and draft tokens at the end of the
window and a token in every part of it, and writes every page of the KV cache, as a conversation of that length does.
Its memory is Rss of /proc/self/smaps_rollup (Linux only), the mapped weights included.

Prints a table and one JSON line. The exit code is 1 if an estimate is more than 3 % off.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.make_checkpoint import PUBLISHED, read_config
from benchmarks.measurements import Conditions, Limit, Measurement, add_results_option, append
from benchmarks.zero_models import make_zero_model
from qwchat.chat.view.table import format_table
from qwchat.model.gpu_memory import stored_tensors
from qwchat.store.memory_estimate import estimate

CONTEXTS = (4096, 32768)
KINDS = ("f32", "q8")
TOLERANCE = 0.03
_ROLLUP = Path("/proc/self/smaps_rollup")
_STRIDE = 512  # positions from one evaluated token to the next
_DRAFTS = 8


@dataclass(frozen=True)
class Cell:
    """Memory of one model, context window and kind of KV cache, in bytes."""

    model: str
    preset: str
    context: int
    kv: str
    resident: int
    estimated: int

    @property
    def deviation(self) -> float:
        """Estimate over resident memory, minus 1."""
        return self.estimated / self.resident - 1


def resident_memory(folder: Path, context: int, kv: str, threads: int) -> tuple[int, int]:
    """Return the resident memory of this process with a full context window, and the estimate, in bytes."""
    import qwchat
    import qwchat.cli.chat  # A chat has its modules in memory.

    with qwchat.load(folder, context=context, kv=kv, threads=threads, verify=False) as model:
        decoder, cache = model.engine.decoder, model.cached_context.cache
        ids = np.arange(decoder.chunk, dtype=np.int64)
        for position in range(0, context - decoder.chunk, _STRIDE):
            decoder.run(ids[:1], position, 0, cache)
        decoder.run(ids[:_DRAFTS], context - _DRAFTS, 0, cache)
        decoder.run(ids, context - decoder.chunk, decoder.chunk - 1, cache)
        for layer in cache.layers:
            for piece in cache.segments(layer, context):
                piece[:] = 0
        found = re.search(r"^Rss:\s+(\d+) kB", _ROLLUP.read_text(), re.MULTILINE)
        assert found is not None
        tensors = stored_tensors(model.config, model.folder.tensor)
        return int(found[1]) * 1024, estimate(model.config, tensors, context, kv, threads).total


def measure(
    shape: str, preset: str, contexts: Sequence[int], threads: int, tokenizer: Path, published: Path, work: Path
) -> Iterator[Cell]:
    """Yield the cells of a shape. The model folder is removed at the end."""
    folder = make_zero_model(read_config(shape, published), preset, tokenizer, work / "zeros")
    try:
        _measure_cell(folder, min(contexts), KINDS[0], threads)  # Compiles kernels and makes the tokenizer's tables.
        for context in contexts:
            for kv in KINDS:
                resident, estimated = _measure_cell(folder, context, kv, threads)
                yield Cell(shape, preset, context, kv, resident, estimated)
    finally:
        shutil.rmtree(folder)


def _measure_cell(folder: Path, context: int, kv: str, threads: int) -> tuple[int, int]:
    """Return what `resident_memory` returns in a process of its own."""
    arguments = ["--cell", str(folder), str(context), kv, "--threads", str(threads)]
    command = [sys.executable, "-m", "benchmarks.memory_estimates", *arguments]
    resident, estimated = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return resident, estimated


def as_text(cells: Sequence[Cell]) -> str:
    """Return a table with a row for each cell."""
    heads = ("model", "preset", "context", "KV", "resident", "estimate", "deviation")
    rows = [
        (
            cell.model,
            cell.preset,
            f"{cell.context:,}",
            cell.kv,
            f"{cell.resident / 1e6:,.1f} MB",
            f"{cell.estimated / 1e6:,.1f} MB",
            f"{100 * cell.deviation:+.2f} %",
        )
        for cell in cells
    ]
    return format_table(heads, rows, right=(2, 4, 5, 6))


def measurements(conditions: Conditions, cells: Sequence[Cell]) -> list[Measurement]:
    """Return a measurement for each cell, with the estimate as its limit."""
    return [
        Measurement(
            conditions,
            cell.model,
            "qwchat",
            f"{cell.preset}, {cell.kv}",
            "resident memory, full context",
            cell.context,
            cell.resident,
            "bytes",
            limit=Limit("qwchat estimate", cell.estimated),
        )
        for cell in cells
    ]


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shapes", nargs="*", help="names in shapes.json, or config.json files")
    parser.add_argument("--preset", default="q4")
    parser.add_argument("--contexts", type=int, nargs="+", default=list(CONTEXTS), help="lengths in tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--published", type=Path, default=PUBLISHED, help="folder of shapes.json and 7b-instruct/")
    parser.add_argument("--tokenizer", type=Path, help="folder of tokenizer.json (default: the published one)")
    parser.add_argument("--cell", nargs=3, metavar=("FOLDER", "CONTEXT", "KV"), help=argparse.SUPPRESS)
    add_results_option(parser)
    options = parser.parse_args()
    if options.cell:
        folder, context, kv = options.cell
        print(json.dumps(resident_memory(Path(folder), int(context), kv, options.threads)))
        return 0
    tokenizer = options.tokenizer or options.published / "7b-instruct"
    with tempfile.TemporaryDirectory() as work:
        cells = [
            cell
            for shape in options.shapes
            for cell in measure(
                shape, options.preset, options.contexts, options.threads, tokenizer, options.published, Path(work)
            )
        ]
    print(as_text(cells))
    conditions = Conditions.of_this_run("memory_estimates", options.threads)
    append(options.results, measurements(conditions, cells))
    print(json.dumps({**asdict(conditions), "cells": [asdict(cell) for cell in cells]}))
    return int(any(abs(cell.deviation) > TOLERANCE for cell in cells))


if __name__ == "__main__":
    raise SystemExit(main())
