"""Compare the time of our conversion with llama.cpp's, from bf16 safetensors to the quantised model.

    python -m benchmarks.conversion_speed qwen2-0.5b-instruct --converter /path/to/convert_hf_to_gguf.py
        --converter-python /path/to/python --rival-python /path/to/python

llama.cpp takes two steps: `convert_hf_to_gguf.py` (in the source package of llama-cpp-python; its Python needs torch,
transformers and sentencepiece) writes a bf16 GGUF file, and its quantiser (`--rival-python` needs llama-cpp-python)
makes Q4_K_M and Q8_0 from it; both steps count. We convert to `q4` and `q8` without the check of the result. Everything
reads and writes the folder of --work, in turn for some rounds; the programs use the same number of threads, and medians
are compared.

Wall time suffers from other processes on the machine; processor time, which is printed beside it, hardly does. The
checkpoints have random weights (`benchmarks.make_checkpoint`) and are kept in the work folder. The exit code is 1 if a
bar is missed by wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.make_checkpoint import PUBLISHED, copy_tokenizer, make_checkpoint, read_config
from benchmarks.measurements import machine_name
from benchmarks.real_shapes import qwchat
from qwchat.chat.view.table import format_table

ROOT = Path(__file__).resolve().parent.parent
BARS = {"q4": ("Q4_K_M", 0.35), "q8": ("Q8_0", 1.0)}
"""By preset: type of llama.cpp, and the largest ratio of our time to its."""


LAST_CHARACTERS = 1000
"""Of what a program that failed wrote to standard error."""


@dataclass(frozen=True)
class Cost:
    """Seconds of a process: on the clock, and of all processors together; bytes at the peak of its memory."""

    wall: float
    processor: float
    peak: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.processor + other.processor, max(self.peak, other.peak))


def cost_of(command: Sequence[str]) -> Cost:
    """Run a command and return its cost. Raises SystemExit with its stderr if it fails."""
    with tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(
                f"{' '.join(command)} ended with {process.returncode}:\n{errors.read()[-LAST_CHARACTERS:]}"
            )
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


class Round:
    """One conversion by each program, in a folder that is emptied."""

    def __init__(self, checkpoint: Path, folder: Path, options: argparse.Namespace) -> None:
        self._checkpoint, self._folder, self._options = checkpoint, folder, options
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    def ours(self, preset: str) -> Cost:
        """Convert to a preset."""
        model = self._folder / preset
        threads = ("--threads", str(self._options.threads))
        cost = cost_of(qwchat("convert", str(self._checkpoint), str(model), "--preset", preset, "--no-check", *threads))
        shutil.rmtree(model)
        return cost

    def bf16(self) -> Cost:
        """Write the bf16 GGUF file."""
        options = self._options
        words = (options.converter_python, options.converter, self._checkpoint, "--outtype", "bf16", "--outfile")
        return cost_of([*map(str, words), str(self._folder / "bf16.gguf")])

    def quantised(self, kind: str) -> Cost:
        """Quantise the bf16 GGUF file to a type."""
        file = self._folder / f"{kind}.gguf"
        command = [str(self._options.rival_python), "-m", "benchmarks.llama_logits", "encode"]
        words = [str(self._folder / "bf16.gguf"), str(file), kind, "--threads", str(self._options.threads)]
        cost = cost_of(command + words)
        file.unlink()
        return cost


def measure(checkpoint: Path, options: argparse.Namespace) -> dict[str, list[Cost]]:
    """Return the costs of all rounds by step: presets, types of llama.cpp, and `bf16`."""
    found: dict[str, list[Cost]] = {}
    for number in range(options.rounds):
        each = Round(checkpoint, options.work / "conversions", options)
        steps = [(preset, each.ours) for preset in options.presets]
        steps += [("bf16", lambda _, each=each: each.bf16())]
        steps += [(BARS[preset][0], each.quantised) for preset in options.presets]
        for name, run in steps:
            found.setdefault(name, []).append(run(name))
            print(f"{checkpoint.name}, round {number + 1}: {name} {found[name][-1].wall:.1f} s", file=sys.stderr)
    shutil.rmtree(options.work / "conversions")
    return found


def compare(found: dict[str, list[Cost]], preset: str) -> dict[str, Any]:
    """Return medians of our time and of both steps of llama.cpp, the ratios, and whether the bar is met."""
    kind, limit = BARS[preset]
    theirs = [first + second for first, second in zip(found["bf16"], found[kind], strict=True)]
    sides = {"ours": found[preset], "theirs": theirs}
    medians = {
        side: {field: statistics.median(getattr(cost, field) for cost in costs) for field in ("wall", "processor")}
        for side, costs in sides.items()
    }
    ratios = {field: medians["ours"][field] / medians["theirs"][field] for field in ("wall", "processor")}
    return {"preset": preset, "kind": kind, **medians, "ratio": ratios, "limit": limit, "met": ratios["wall"] <= limit}


def make(shape: str, options: argparse.Namespace) -> Path:
    """Return the checkpoint of a shape in the work folder; make it if it is not there."""
    folder: Path = options.work / (Path(shape).resolve().parent.name if Path(shape).is_file() else shape)
    if not folder.exists():
        making = folder.with_name(folder.name + ".part")
        shutil.rmtree(making, ignore_errors=True)
        copy_tokenizer(options.published, make_checkpoint(read_config(shape, options.published), making))
        making.rename(folder)
    return folder


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the comparisons as a table."""
    heads = ("shape", "", "wall s", "llama.cpp", "wall s", "ratio", "bar", "processor s", "llama.cpp's", "ratio")
    cells = [
        (
            row["shape"], row["preset"], f"{row['ours']['wall']:.1f}", row["kind"], f"{row['theirs']['wall']:.1f}",
            f"{row['ratio']['wall']:.2f}", f"≤ {row['limit']:.2f}", f"{row['ours']['processor']:.1f}",
            f"{row['theirs']['processor']:.1f}", f"{row['ratio']['processor']:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    return format_table(heads, cells, right=(2, 4, 5, 6, 7, 8, 9))


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="time of conversions beside llama.cpp's")
    parser.add_argument("shapes", nargs="+", metavar="SHAPE", help="names in shapes.json, or config.json files")
    parser.add_argument("--converter", type=Path, required=True, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--converter-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--rival-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "qwchat-real-shapes")
    parser.add_argument("--presets", nargs="+", choices=list(BARS), default=list(BARS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--published", type=Path, default=PUBLISHED, help="folder of shapes.json and 7b-instruct/")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    options = parser.parse_args()
    rows, costs = [], {}
    for shape in options.shapes:
        found = measure(make(shape, options), options)
        costs[shape] = {name: [asdict(cost) for cost in each] for name, each in found.items()}
        rows += [{"shape": shape, **compare(found, preset)} for preset in options.presets]
    print(f"{machine_name()}, {options.threads} threads, medians of {options.rounds} rounds\n\n{table(rows)}")
    if options.json is not None:
        options.json.write_text(json.dumps({"comparisons": rows, "costs": costs}, indent=1))
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
