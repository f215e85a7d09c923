"""Measure the time to the first token of a continued conversation: with a snapshot of the KV cache, and without.

    python -m benchmarks.resume qwchat/embedded-or-converted/mini-q4
    python -m benchmarks.resume models/qwen2-0.5b-instruct-q4 --tokens 3000

Every run is a process of its own that opens the model, restores the snapshot or evaluates the prompt again, and
generates a few greedy tokens. The two ways alternate. `engine` is the time from the opened model to the first token, by
the clock and as CPU time of all threads, which other programs disturb less. `process` is the time from the start of the
process, which includes a start that both ways have in common. `command` is the whole command line, `qwchat -p …
--session …`, in a session whose first prompt was about as long, until its first text arrives. Files are in the page
cache, as they are when a conversation ended a while ago. The exit code is 1 if the texts differ or the snapshot takes
more than a tenth of the time without it. Prints one JSON line at the end.
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
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measurements import Conditions, Measurement, add_results_option, append, model_and_preset
from benchmarks.real_shapes import qwchat
from benchmarks.startup import time_to_text
from quant.machine import usable_processors

LIMIT = 0.1  # largest share of the time without a snapshot
GENERATED = 24
OTHER_TOKENS = 128  # tokens of the session besides the long text
WAYS = ("snapshot", "again")


_TEXTS = ("LICENSE", "README.md", "docs/internals/threat-model.md", "docs/log.md")
"""The first one fills a small context and never changes; a small model's text depends on every word of the prompt."""


def prompt_ids(model: Any, count: int) -> list[int]:
    """Return `count` tokens of this project's own prose, repeated if necessary."""
    root = Path(__file__).resolve().parent.parent
    text = "".join((root / name).read_text("utf-8") for name in _TEXTS)
    ids: list[int] = model.encode(text)
    return (ids * (count // len(ids) + 1))[:count]


def generate(model: Any, ids: Sequence[int]) -> tuple[float, float, list[int], int]:
    """Generate greedy tokens behind a prompt.

    Returns:
        The times of the first token, by the clock and in CPU seconds, the tokens, and the number of cached tokens.
    """
    from qwchat.events import Finished, TokenStep
    from qwchat.request import Request, SamplingParams

    first, cpu, tokens, cached = 0.0, 0.0, [], 0
    request = Request(SamplingParams(), seed=0, max_tokens=GENERATED, speculate=False)
    for event in model.engine.generate(model.cached_context, ids, request, usable_vocab=model.tokenizer.vocab_size):
        if isinstance(event, TokenStep):
            if not tokens:
                first, cpu = time.perf_counter(), time.process_time()
            tokens.append(event.token_id)
        elif isinstance(event, Finished):
            cached = event.stats.cached_tokens
    return first, cpu, tokens, cached


def child(options: argparse.Namespace) -> None:
    """Run one way and print its figures; `--way write` writes the snapshot, `--way text` the first prompt."""
    import qwchat

    with qwchat.load(options.model, threads=options.threads, kv=options.kv, verify=False) as model:
        kept = options.snapshot.with_name("ids.json")  # The tokenizer is not part of the measurement.
        if options.way == "write":
            ids = prompt_ids(model, options.tokens or model.context - GENERATED)
            kept.write_text(json.dumps(ids))
            generate(model, ids)
            started = time.perf_counter()
            size = model.save_cache(options.snapshot)
            print(json.dumps({"bytes": size, "seconds": time.perf_counter() - started, "tokens": len(ids)}))
            return
        if options.way == "text":
            ids = prompt_ids(model, (options.tokens or model.context) - OTHER_TOKENS)
            options.snapshot.write_text(model.decode(ids))
            return
        ids = json.loads(kept.read_text())
        opened, spent = time.perf_counter(), time.process_time()
        if options.way == "snapshot":
            model.restore_cache(options.snapshot)
        filled = time.perf_counter()
        first, cpu, tokens, cached = generate(model, ids)
        figures = {
            "process": first - options.started,
            "opened": opened - options.started,
            "engine": first - opened,
            "cpu": cpu - spent,
            "restored": filled - opened,
            "token": first - filled,
            "cached": cached,
            "said": tokens,
        }
        print(json.dumps(figures))


def run(options: argparse.Namespace, way: str, snapshot: Path) -> dict[str, Any]:
    """Run one way in a process of its own and return its figures.

    The process gets its start time as an argument, since both processes read the same clock.
    """
    command = [sys.executable, "-m", "benchmarks.resume", str(options.model), "--way", way, "--snapshot", str(snapshot)]
    command += ["--tokens", str(options.tokens), "--threads", str(options.threads), "--kv", options.kv]
    command += ["--started", repr(time.perf_counter())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def first_turn(options: argparse.Namespace, folder: Path) -> Path:
    """Make a folder of sessions with one session, whose first prompt has nearly all the tokens, and its snapshot."""
    sessions = folder / "sessions"
    text = folder / "question.txt"
    settings = ("--tokens", str(options.tokens), "--kv", options.kv, "--way", "text", "--snapshot", str(text))
    subprocess.run([sys.executable, "-m", "benchmarks.resume", str(options.model), *settings], check=True)
    ask(options, sessions, "--snapshot", "on", "-f", str(text))
    return sessions


def ask(options: argparse.Namespace, sessions: Path, *more: str) -> tuple[float, list[dict[str, Any]]]:
    """Send a prompt with the command line and return the seconds to its first text, and all events."""
    settings = ("--temp", "0", "--max-tokens", "8", "--kv", options.kv, "--threads", str(options.threads))
    command = qwchat("-m", str(options.model), "-p", "Is that all?", "--session", "long", "--jsonl", *settings, *more)
    return time_to_text(command, {**os.environ, "QWCHAT_SESSIONS": str(sessions)})


def ask_again(options: argparse.Namespace, sessions: Path, way: str) -> dict[str, Any]:
    """Send the second prompt in a copy of the sessions, with the snapshot or without, and return the figures."""
    with tempfile.TemporaryDirectory(dir=sessions.parent) as folder:
        copy = Path(shutil.copytree(sessions, Path(folder) / "sessions"))
        seconds, events = ask(options, copy, "--snapshot", "on" if way == "snapshot" else "off")
    text = "".join(event["text"] for event in events if event["event"] == "text")
    return {"command": seconds, "command_said": text, "command_cached": events[-1]["tokens"]["cached"]}


def shares_of_restoring(snapshot: Path) -> dict[str, float]:
    """Return the seconds that the parts of restoring take on one thread, the best of five."""
    size = snapshot.stat().st_size
    memory = bytearray(size)

    def fastest(work: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        return min(times)

    def read(target: bytearray) -> None:
        with snapshot.open("rb", buffering=0) as file:
            file.readinto(target)

    warm = fastest(lambda: read(memory))
    return {
        "copying the file": warm,
        "first touch of the cache's memory": max(0.0, fastest(lambda: read(bytearray(size))) - warm),
        "checksums": fastest(lambda: zlib.crc32(memory)),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the warm-up rounds and the measured rounds, and return the figures."""
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        snapshot = Path(folder) / "kv.snapshot"
        written = run(options, "write", snapshot)
        sessions = first_turn(options, Path(folder))
        rounds: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for number in range(-options.warm, options.rounds):
            for way in WAYS:
                figures = run(options, way, snapshot) | ask_again(options, sessions, way)
                if number >= 0:
                    rounds[way].append(figures)
        return {
            "model": str(options.model),
            "kv": options.kv,
            "threads": options.threads,
            "written": written,
            "shares": shares_of_restoring(snapshot),
            "rounds": rounds,
        }


def median(figures: Mapping[str, Any], way: str, name: str) -> float:
    """Return the median of a figure over the rounds of one way."""
    return statistics.median(run[name] for run in figures["rounds"][way])


def ratio(figures: Mapping[str, Any], name: str) -> float:
    """Return the time with the snapshot as a share of the time without."""
    return median(figures, "snapshot", name) / median(figures, "again", name)


def same_text(figures: Mapping[str, Any]) -> bool:
    """Return True if all runs generated the same text."""
    return len({(*run["said"], run["command_said"]) for way in WAYS for run in figures["rounds"][way]}) == 1


def as_text(figures: Mapping[str, Any]) -> str:
    """Return the figures as text."""
    written = figures["written"]
    lines = [
        f"{written['tokens']:,} tokens, kv {figures['kv']}, {figures['threads']} threads: "
        f"{written['bytes'] / 1e6:.1f} MB, written in {written['seconds'] * 1e3:.0f} ms",
        f"{'ms to the first token':<24}{'snapshot':>10}{'again':>10}{'ratio':>8}",
    ]
    for name in ("engine", "cpu", "process", "command"):
        ours, theirs = (median(figures, way, name) * 1e3 for way in WAYS)
        label = "engine, CPU time" if name == "cpu" else name
        lines.append(f"{label:<24}{ours:>10.1f}{theirs:>10.1f}{ratio(figures, name):>8.1%}")
    whole = median(figures, "snapshot", "process")
    for label, name in {"start, imports, model": "opened", "restoring": "restored", "first token": "token"}.items():
        seconds = median(figures, "snapshot", name)
        lines.append(f"  {label:<22}{seconds * 1e3:>10.1f}{seconds / whole:>10.0%}")
    lines += [f"  {name}: {seconds * 1e3:.1f} ms on one thread" for name, seconds in figures["shares"].items()]
    for name in ("cached", "command_cached"):
        where = ", command line" if name == "command_cached" else ""
        ours, theirs = (figures["rounds"][way][0][name] for way in WAYS)
        lines.append(f"tokens from the cache{where}: {ours:,} and {theirs:,}")
    lines.append("greedy text: " + ("identical" if same_text(figures) else "DIFFERENT"))
    return "\n".join(lines)


def measurements(figures: Mapping[str, Any], conditions: Conditions) -> list[Measurement]:
    """Return a measurement for each way and each time to the first token."""
    model, preset = model_and_preset(figures["model"])
    cells = {"cpu": "CPU time to first token", "engine": "time to first token", "command": "command to first token"}
    return [
        Measurement(
            conditions, model, "qwchat", setting, cell, figures["written"]["tokens"], median(figures, way, name), "s",
            note=", ".join(part for part in (preset, f"KV {figures['kv']}") if part),
        )
        for name, cell in cells.items()
        for way, setting in zip(WAYS, ("snapshot", "read again"), strict=True)
    ]  # fmt: skip


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="resuming with and without a snapshot")
    parser.add_argument("model", type=Path, help="a converted model")
    parser.add_argument("--tokens", type=int, default=0, help="tokens of the prompt (default: the whole context)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm", type=int, default=1, help="warm-up rounds")
    parser.add_argument("--kv", default="auto")
    parser.add_argument("--threads", type=int, default=len(usable_processors()))
    parser.add_argument("--work", type=Path, help="folder for the snapshot")
    parser.add_argument("--way", choices=(*WAYS, "write", "text"), help=argparse.SUPPRESS)
    parser.add_argument("--snapshot", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    add_results_option(parser)
    options = parser.parse_args()
    if options.way:
        child(options)
        return 0
    figures = measure(options)
    print(as_text(figures))
    print(json.dumps(figures))
    append(options.results, measurements(figures, Conditions.of_this_run("resume", options.threads)))
    return 0 if same_text(figures) and ratio(figures, "engine") <= LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
