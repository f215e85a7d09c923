"""Measure a pull beside its parts: the download of the same files alone, and their conversion alone.

    python -m benchmarks.pull                                     # a minute, 3 GB of disk
    python -m benchmarks.pull --shape qwen2-7b --work DIR         # minutes, 35 GB of disk
    python -m benchmarks.pull --file-bytes 250000000 --rounds 5   # several files, which download and convert at once

A checkpoint with random weights in a real shape is served on loopback, by a process of its own that sends files with
sendfile. Each step runs in a process of its own, in turns over the rounds; figures are medians:

    download    the client of `qwchat pull` writes the weight files to the disk, and does nothing else
    conversion  `qwchat convert` of the same files
    pull        `qwchat pull`

For each step: wall seconds, CPU seconds of the client and of the server, peak of the memory besides the page cache, and
of a pull the peak of the disk. A busy machine changes the CPU seconds little. Everything that was written is removed.
Linux only. Prints one JSON line at the end. The exit code is 1 if a bound is exceeded: 1.5 GB of memory, disk of the
result and 1.1 times the largest file, and with --bound-time 1.15 times the slower part.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.make_checkpoint import SHARD_BYTES, make_checkpoint
from benchmarks.measurements import machine_name
from benchmarks.processes import TICKS
from benchmarks.real_shapes import resident_sets
from qwchat.models_folder import embedded_checkpoint
from qwchat.store import catalogue

NAME = "Random/Model"
SAMPLE_SECONDS = 0.05
MEMORY_BOUND, DISK_FACTOR, TIME_FACTOR = 1.5e9, 1.1, 1.15
STEPS = ("download", "conversion", "pull")
DOWNLOAD = f"""
import sys
from pathlib import Path
from qwchat.store.hub import find_repository
from qwchat.store.hub_download import download
repository = find_repository({NAME!r})
for file in repository.files.values():
    if file.name.endswith(".safetensors"):
        with (Path(sys.argv[1]) / file.name).open("wb", buffering=0) as stream:
            download(repository, file, stream)
"""
PROGRAM = "from qwchat.cli.main import main; main()"


@dataclass(frozen=True)
class Figures:
    """One run of a step: seconds, and peaks in bytes; `disk` is that of the models folder."""

    wall: float
    client_cpu: float
    server_cpu: float
    memory: int
    disk: int


@dataclass(frozen=True)
class Bench:
    """The served checkpoint, and the folder in which everything happens."""

    work: Path
    server: int
    environment: dict[str, str]

    @property
    def source(self) -> Path:
        """The folder that is served."""
        return self.work / "Model"

    @property
    def models(self) -> Path:
        """The folder that `qwchat pull` fills."""
        return self.work / "models"

    def run(self, step: str) -> Figures:
        """Run a step, which leaves its result in the work folder."""
        python = sys.executable
        command = {
            "download": [python, "-c", DOWNLOAD, str(self.work / "downloaded")],
            "conversion": [python, "-c", PROGRAM, "convert", str(self.source), str(self.work / "converted"), "-q"],
            "pull": [python, "-c", PROGRAM, "pull", NAME, "-q"],
        }[step]
        if step == "download":
            (self.work / "downloaded").mkdir()
        served = cpu_seconds(self.server)
        began, memory, disk = time.perf_counter(), 0, 0
        process = subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL)
        while True:
            found, status, usage = os.wait4(process.pid, os.WNOHANG)
            if found:
                break
            sets = resident_sets(process.pid)
            memory = max(memory, sets.get("RssAnon", 0) + sets.get("RssShmem", 0))
            disk = max(disk, disk_bytes(self.models))
            time.sleep(SAMPLE_SECONDS)
        wall = time.perf_counter() - began
        if status:
            raise SystemExit(f"{step} ended with status {os.waitstatus_to_exitcode(status)}")
        process.returncode = 0
        return Figures(wall, usage.ru_utime + usage.ru_stime, cpu_seconds(self.server) - served, memory, disk)

    def remove_results(self) -> None:
        """Remove what the steps have made."""
        for name in ("downloaded", "converted", "models"):
            shutil.rmtree(self.work / name, ignore_errors=True)


def cpu_seconds(process: int) -> float:
    """Return the CPU seconds of a process and its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def disk_bytes(folder: Path) -> int:
    """Return the bytes that the files below a folder take on the disk."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:  # It was removed in this moment.
            continue
    return total


def shapes() -> dict[str, dict[str, Any]]:
    """Return the values of config.json for every shape of the catalogue."""
    table = tomllib.loads(Path(catalogue.__file__).with_name("catalogue.toml").read_text(encoding="utf-8"))
    neutral = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768}
    return {name: {**neutral, **values} for name, values in table["shapes"].items()}


@contextmanager
def serving(shape: str, file_bytes: int, work: Path) -> Iterator[Bench]:
    """Make a checkpoint and serve it."""
    source = make_checkpoint(shapes()[shape], work / "Model", shard_bytes=file_bytes)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(embedded_checkpoint() / name, source / name)
    command = [sys.executable, "-m", "tests.store.hub_server", NAME, str(source)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "QWCHAT_MODEL"))}
        extra = {"HF_ENDPOINT": url, "HF_HOME": str(work / "hub"), "QWCHAT_MODELS": str(work / "models")}
        try:
            yield Bench(work, server.pid, {**kept, **extra})
        finally:
            server.kill()


def run_round(bench: Bench) -> tuple[dict[str, Figures], int]:
    """Run all steps once. Return their figures and the bytes of the result. Raises SystemExit if results differ."""
    figures = {}
    for step in STEPS:
        figures[step] = bench.run(step)
        if step == "download":
            shutil.rmtree(bench.work / "downloaded")
        print(f"{step:<10} {figures[step].wall:6.1f} s, CPU {figures[step].client_cpu:6.1f} s", file=sys.stderr)
    [pulled] = [path for path in bench.models.iterdir() if not path.name.startswith(".")]
    if not filecmp.cmp(pulled / "weights.bin", bench.work / "converted/weights.bin", shallow=False):
        raise SystemExit("the pulled model differs from the converted one")
    size = disk_bytes(bench.models)
    bench.remove_results()
    return figures, size


def medians(rounds: Sequence[dict[str, Figures]]) -> dict[str, dict[str, float]]:
    """Return the median of each figure over the rounds, by step."""
    return {
        step: {name: round(median(asdict(each[step])[name] for each in rounds), 2) for name in asdict(rounds[0][step])}
        for step in STEPS
    }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="measure a pull beside a download and a conversion")
    parser.add_argument("--shape", default="qwen2-0.5b", choices=shapes())
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--file-bytes", type=int, default=SHARD_BYTES, help="most bytes of weights in one file")
    parser.add_argument("--work", type=Path, help="folder for a temporary folder (default: that of the system)")
    parser.add_argument("--bound-time", action="store_true", help="fail if a pull takes 1.15 times the slower part")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=options.work) as folder,
        serving(options.shape, options.file_bytes, Path(folder)) as bench,
    ):
        sizes = [file.stat().st_size for file in bench.source.glob("*.safetensors")]
        runs = [run_round(bench) for _ in range(options.rounds)]
    figures, result = medians([run for run, _ in runs]), runs[0][1]
    pull, slower = figures["pull"], max(figures["download"]["wall"], figures["conversion"]["wall"])
    bounds = {
        "memory": pull["memory"] <= MEMORY_BOUND,
        "disk": pull["disk"] <= result + DISK_FACTOR * max(sizes),
        "time": pull["wall"] <= TIME_FACTOR * slower,
    }
    parts = sum(figures[step]["client_cpu"] for step in ("download", "conversion"))
    report = {
        "machine": machine_name(),
        "shape": options.shape,
        "bytes": sum(sizes),
        "files": len(sizes),
        "largest_file": max(sizes),
        "result": result,
        "rounds": options.rounds,
        **figures,
        "time_ratio": round(pull["wall"] / slower, 3),
        "cpu_ratio": round(pull["client_cpu"] / parts, 3),
        "bounds": bounds,
    }
    print(json.dumps(report))
    return 0 if bounds["memory"] and bounds["disk"] and (bounds["time"] or not options.bound_time) else 1


if __name__ == "__main__":
    sys.exit(main())
