"""Compare our formats with llama.cpp's, GPTQ and AWQ: divergence from bf16, bits per weight and encode time.

    python -m benchmarks.quality_per_bit MODEL… --text prose=FILE --text licences=FILE --unlike licences
        --calibration FILE… --rival-python /path/to/python

MODEL is a bf16 checkpoint. The text of a kind is a plain text, or conversations (`.jsonl`) whose replies count; a model
without a chat template skips conversations. All contenders predict the same tokens, and all that are calibrated read
the same calibration text. `--rival-python` is a Python with llama-cpp-python and gguf; by default this one.

For each model it prints a table with whole-model bits per weight, seconds to encode and to calibrate, and the mean
Kullback-Leibler divergence from the checkpoint; then a table for each kind of text, with the confidence interval, the
99.9th percentile, same top token and perplexity ratio. Those columns are of the dequantised weights with float
activations, so that every contender gets exactly its own values. `engine KL` is our engine with its own activations, if
it keeps all codes of the contender; `llama.cpp KL` is llama.cpp on its own file. Below the tables stand the bars and
what was reached.

GPTQ, AWQ and the importance matrix are those of `benchmarks.rivals`. The exit code is 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import quant
import qwchat
from benchmarks.llama_parity import Rival
from benchmarks.rivals.contenders import Comparison, Result
from benchmarks.rivals.measuring import CONVERSATIONS, Yardstick, calibration_windows, text_windows
from benchmarks.rivals.quality_table import markdown, verdicts

WINDOW = 256
"""Tokens of a text that are evaluated together; 2,048 tokens make the eight windows that an interval needs."""
CALIBRATION_WINDOW = 512


def parse_text(argument: str) -> tuple[str, Path]:
    """Return kind and file of NAME=FILE. Raises argparse.ArgumentTypeError."""
    name, equals, file = argument.partition("=")
    if not (name and equals and Path(file).is_file()):
        raise argparse.ArgumentTypeError(f"{argument!r} is not NAME=FILE of an existing file")
    return name, Path(file)


def measure_model(checkpoint: Path, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all contenders of a checkpoint, print their table, and return the figures."""
    started, results = time.perf_counter(), []
    dense = work / "reference"
    for _ in quant.convert(checkpoint, dense, preset="dense"):
        pass
    with qwchat.load(dense, device="cpu", kv="f32", verify=False) as model:
        texts = [(kind, file) for kind, file in options.text if usable(checkpoint, file)]
        windows = [each for kind, file in texts for each in text_windows(model, kind, file, options.tokens, WINDOW)]
        yardstick = Yardstick.of(model, windows)
        files = [file for file in options.calibration if usable(checkpoint, file)]
        calibration = calibration_windows(model, files, options.calibration_tokens, CALIBRATION_WINDOW)
    comparison = Comparison(checkpoint, work, yardstick, calibration, Rival(options.rival_python))
    chosen = re.compile(options.only).search
    for group in (comparison.ours, comparison.llama, comparison.plain):
        for result in group(lambda name: chosen(name) is not None):
            results.append(result)
            means = " ".join(f"{kind} {each['kl_mean']:.2e}" for kind, each in result.weights.items())
            print(f"{checkpoint.name}: {result.name}: {result.bits:.3f} bits, {means}", file=sys.stderr, flush=True)
    return {
        "model": checkpoint.name,
        "tokens": yardstick.tokens(),
        "calibration_tokens": sum(map(len, calibration)),
        "unlike": options.unlike,
        "seconds": time.perf_counter() - started,
        "results": [asdict(each) for each in results],
        "bars": [{**asdict(each), "met": each.met} for each in verdicts(results, options.unlike)],
    }


def usable(checkpoint: Path, file: Path) -> bool:
    """Return whether a text fits a checkpoint: conversations need a chat template of its own."""
    config = checkpoint / "tokenizer_config.json"
    return file.suffix != CONVERSATIONS or (config.exists() and "chat_template" in json.loads(config.read_text()))


def print_model(found: dict[str, Any]) -> None:
    """Print the table of a model and the bars."""
    counts = ", ".join(f"{count:,} of {kind}" for kind, count in found["tokens"].items())
    results = [Result(**each) for each in found["results"]]
    print(
        f"## {found['model']}: tokens {counts}; {found['calibration_tokens']:,} to calibrate; {found['seconds']:.0f} s"
    )
    print(f"\n{markdown(results, list(found['tokens']))}\n")
    for verdict in verdicts(results, found["unlike"]):
        print(f"- {verdict.line()}")
    print(flush=True)


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="divergence per bit of our formats and of rivals")
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="bf16 checkpoints")
    parser.add_argument("--text", type=parse_text, action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--unlike", nargs="*", default=[], metavar="NAME", help="texts unlike the calibration text")
    parser.add_argument("--calibration", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--tokens", type=int, default=2048, metavar="N", help="tokens of each text")
    parser.add_argument("--calibration-tokens", type=int, default=16384, metavar="N")
    parser.add_argument("--rival-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--only", default="", metavar="REGEX", help="contenders whose names match")
    parser.add_argument("--work", type=Path, help="folder for files that are deleted at the end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    options = parser.parse_args()
    found = []
    for checkpoint in options.models:
        with tempfile.TemporaryDirectory(dir=options.work, prefix="qwchat-quality-") as name:
            found.append(measure_model(checkpoint.resolve(), Path(name), options))
        print_model(found[-1])
        if options.json is not None:
            options.json.write_text(json.dumps(found, indent=1))
    return 0 if all(bar["met"] for each in found for bar in each["bars"]) else 1


if __name__ == "__main__":
    sys.exit(main())
