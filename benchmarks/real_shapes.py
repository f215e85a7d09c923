"""Convert and run a checkpoint with random weights in a real shape, and measure the memory that both need.

    python -m benchmarks.real_shapes qwen2-0.5b-instruct
    python -m benchmarks.real_shapes qwen2-7b-instruct --work /somewhere/with/25/GB

The first run makes the checkpoint and keeps it in the work folder unless --clean is given. Each step runs in a process
of its own, whose memory is sampled from /proc/PID/status (Linux only):

    anonymous   RssAnon + RssShmem, the memory besides the page cache
    resident    anonymous + RssFile, which includes the pages of mapped files; the kernel can drop these

Prints one JSON line at the end. The exit code is 1 if a bound is exceeded.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.make_checkpoint import PUBLISHED, copy_tokenizer, make_checkpoint, read_config
from benchmarks.measurements import Conditions, Measurement, add_results_option, append

SAMPLE_SECONDS = 0.01
CONVERT_ANONYMOUS_LIMIT = 1.5e9
ANSWER_RESIDENT_LIMIT = 6e9
PROMPT = "Write three sentences about the sea."


@dataclass(frozen=True)
class Measured:
    """Result of a sampled process; bytes are peaks over its life."""

    seconds: float
    anonymous: int
    resident: int
    stdout: str


def resident_sets(pid: int) -> dict[str, int]:
    """Return RssAnon, RssFile and RssShmem of a process in bytes; empty once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile", "RssShmem") if name in fields}


def watch(command: Sequence[str]) -> Measured:
    """Run `command` to its end and sample its memory. Raises SystemExit with its stderr if it fails."""
    anonymous = resident = 0
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        while process.poll() is None:
            if sets := resident_sets(process.pid):
                anonymous = max(anonymous, sets["RssAnon"] + sets["RssShmem"])
                resident = max(resident, sum(sets.values()))
            time.sleep(SAMPLE_SECONDS)
        seconds = time.perf_counter() - started
        stdout.seek(0)
        stderr.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{stderr.read()}")
        return Measured(seconds, anonymous, resident, stdout.read())


def qwchat(*arguments: str) -> list[str]:
    """Return the command line that runs qwchat with this interpreter."""
    return [sys.executable, "-c", "from qwchat.cli.main import main; main()", *arguments]


def parameters_in(checkpoint: Path) -> int:
    """Return the number of weights, from the safetensors headers alone."""
    total = 0
    for file in checkpoint.glob("*.safetensors"):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                total += (end - start) // 2
    return total


def measure(checkpoint: Path, converted: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Convert the checkpoint, generate a reply, show the model, and return the figures."""
    shutil.rmtree(converted, ignore_errors=True)
    convert = watch(qwchat("convert", str(checkpoint), str(converted), "--preset", options.preset, "--quiet"))
    answer = watch(
        qwchat("-m", str(converted), "-p", PROMPT, "--max-tokens", str(options.max_tokens), "--temp", "0", "--json")
    )
    reply = json.loads(answer.stdout)
    shown = json.loads(watch(qwchat("show", str(converted), "--json")).stdout)
    weights_bytes = (converted / "weights.bin").stat().st_size
    return {
        "parameters": parameters_in(checkpoint),
        "source_bytes": sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")),
        "weights_bytes": weights_bytes,
        "bits_per_weight_shown": shown["bits_per_weight"],
        "bits_per_weight_of_file": 8 * weights_bytes / parameters_in(checkpoint),
        "convert": {name: value for name, value in asdict(convert).items() if name != "stdout"},
        "answer": {name: value for name, value in asdict(answer).items() if name != "stdout"},
        "reply": reply,
    }


def broken_bounds(figures: dict[str, Any]) -> list[str]:
    """Return a sentence for each bound that is exceeded."""
    broken = []
    if figures["convert"]["anonymous"] > CONVERT_ANONYMOUS_LIMIT:
        broken.append(f"conversion needed more than {CONVERT_ANONYMOUS_LIMIT / 1e9} GB besides the page cache")
    if figures["answer"]["resident"] > ANSWER_RESIDENT_LIMIT:
        broken.append(f"the answer needed more than {ANSWER_RESIDENT_LIMIT / 1e9} GB")
    if abs(figures["bits_per_weight_shown"] - figures["bits_per_weight_of_file"]) > 0.005:
        broken.append("`qwchat show` prints other bits per weight than the file has")
    return broken


def print_table(shape: str, figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    print(f"{shape}: {figures['parameters']:,} weights, source {figures['source_bytes'] / 1e9:.2f} GB")
    print(f"{'step':<10}{'seconds':>10}{'anonymous GB':>15}{'resident GB':>14}")
    for step in ("convert", "answer"):
        row = figures[step]
        print(f"{step:<10}{row['seconds']:>10.1f}{row['anonymous'] / 1e9:>15.2f}{row['resident'] / 1e9:>14.2f}")
    counted, shown = figures["bits_per_weight_of_file"], figures["bits_per_weight_shown"]
    print(f"weights.bin {figures['weights_bytes'] / 1e9:.3f} GB = {counted:.3f} bits per weight; shown {shown:.3f}")


def measurements(model: str, preset: str, figures: dict[str, Any], conditions: Conditions) -> list[Measurement]:
    """Return a measurement for each step and each kind of memory."""
    return [
        Measurement(conditions, model, "qwchat", preset, f"{step}, {kind} memory", None, figures[step][kind], "bytes")
        for step in ("convert", "answer")
        for kind in ("anonymous", "resident")
    ]


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="memory and time of converting and running a real shape")
    parser.add_argument("shape", help="a name in shapes.json, or a config.json")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "qwchat-real-shapes")
    parser.add_argument("--preset", default="q4")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--published", type=Path, default=PUBLISHED, help="folder of shapes.json and 7b-instruct/")
    parser.add_argument("--clean", action="store_true", help="delete the checkpoint and the model at the end")
    add_results_option(parser)
    options = parser.parse_args()
    name = Path(options.shape).resolve().parent.name if Path(options.shape).is_file() else options.shape
    checkpoint, converted = options.work / name, options.work / f"{name}-{options.preset}"
    if not checkpoint.is_dir():
        making = checkpoint.with_name(name + ".part")
        shutil.rmtree(making, ignore_errors=True)
        copy_tokenizer(options.published, make_checkpoint(read_config(options.shape, options.published), making))
        making.rename(checkpoint)
    figures = measure(checkpoint, converted, options)
    broken = broken_bounds(figures)
    print_table(name, figures)
    for line in broken:
        print(f"BROKEN: {line}")
    if options.clean:
        shutil.rmtree(checkpoint)
        shutil.rmtree(converted)
    print(json.dumps({"shape": name, "preset": options.preset, "machine": platform.machine(), **figures}))
    conditions = Conditions.of_this_run("real_shapes", None)
    append(options.results, measurements(name, options.preset, figures, conditions))
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
