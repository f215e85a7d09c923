"""Measure how much speed a model keeps while busy loops occupy cores of the machine.

    python -m benchmarks.busy_core models/qwen2-0.5b-instruct-q4
    python -m benchmarks.busy_core models/qwen2-0.5b-instruct-q4 --threads 4 --rounds 9

Each loop is pinned to a core. Every round measures each case once, so that fast and slow minutes of the machine affect
all cases alike; figures are medians. A measurement during which other processes used more than a tenth of a core is
repeated up to three times. With autogroup scheduling (sysctl kernel.sched_autogroup_enabled), a loop in a session of
its own gets as large a share of its core as all threads of the engine together, and a loop in our session as much as
one thread. Both cases are measured. Linux only. Prints one JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

import qwchat
from benchmarks.measurements import Conditions, Measurement, add_results_option, append, model_and_preset
from quant.machine import usable_processors
from qwchat.api import Model
from qwchat.events import Finished
from qwchat.request import Request, SamplingParams

_SETTLE = 0.5  # seconds between cases, so that one does not affect the next
_DISTURBED, _ATTEMPTS = 0.1, 4

_LOOP = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
print(flush=True)
while True:
    pass
"""


@dataclass(frozen=True)
class Case:
    """Number of busy loops, which occupy the last cores, and their session: their own or ours."""

    name: str
    loops: int
    own_session: bool


CASES = (
    Case("free machine", 0, True),
    Case("one loop, own session", 1, True),
    Case("one loop, our session", 1, False),
    Case("two loops, own sessions", 2, True),
    Case("two loops, our session", 2, False),
)


@contextmanager
def busy_loop(core: int, own_session: bool) -> Iterator[subprocess.Popen[bytes]]:
    """Keep `core` busy with a process until the context ends."""
    command = [sys.executable, "-S", "-c", _LOOP, str(core)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=own_session)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def speeds(model: Model, prompt: int, new: int) -> tuple[float, float]:
    """Return tokens per second of prefill and of decode."""
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, prompt).tolist()
    model.cached_context.truncate(0)
    request = Request(SamplingParams(), seed=0, max_tokens=new + 1, speculate=False)
    *_, end = model.engine.generate(model.cached_context, ids, request, usable_vocab=model.config.vocab_size)
    assert isinstance(end, Finished)
    return prompt / end.stats.prefill_seconds, (end.stats.generated_tokens - 1) / end.stats.decode_seconds


def _used(processes: Sequence[subprocess.Popen[bytes]]) -> float:
    """Return the CPU seconds of all processes but this one and `processes` since the machine started."""
    clock = os.sysconf("SC_CLK_TCK")
    user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    ours = sum(os.times()[:2])
    for process in processes:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ours += (int(fields[11]) + int(fields[12])) / clock
    return (int(user) + int(nice) + int(system)) / clock - ours


def undisturbed(
    model: Model, loops: Sequence[subprocess.Popen[bytes]], prompt: int, new: int
) -> tuple[float, tuple[float, float]]:
    """Measure until other processes take less than a tenth of a core, at most four times.

    Returns:
        The share of a core that other processes took, and `speeds`, both of the least disturbed attempt.
    """
    found = []
    for _ in range(_ATTEMPTS):
        time.sleep(_SETTLE)
        used, started = _used(loops), time.perf_counter()
        pair = speeds(model, prompt, new)
        found.append(((_used(loops) - used) / (time.perf_counter() - started), pair))
        if found[-1][0] < _DISTURBED:
            break
    return min(found)


def measure(model: Model, rounds: int, prompt: int, new: int) -> tuple[dict[str, tuple[float, float]], float]:
    """Return the medians of `speeds` by case, and the largest share of a core that other processes took."""
    cores = sorted(usable_processors(), reverse=True)
    cases = [case for case in CASES if case.loops <= len(cores)]
    found: dict[str, list[tuple[float, float]]] = {case.name: [] for case in cases}
    worst = 0.0
    speeds(model, prompt, new)
    for _ in range(rounds):
        for case in cases:
            with ExitStack() as stack:
                loops = [stack.enter_context(busy_loop(core, case.own_session)) for core in cores[: case.loops]]
                taken, pair = undisturbed(model, loops, prompt, new)
            found[case.name].append(pair)
            worst = max(worst, taken)
    medians = {
        name: (median(read for read, _ in pairs), median(written for _, written in pairs))
        for name, pairs in found.items()
    }
    return medians, worst


def measurements(model: str, found: dict[str, tuple[float, float]], conditions: Conditions) -> list[Measurement]:
    """Return a record of prefill and one of decode for each case."""
    name, preset = model_and_preset(model)
    return [
        Measurement(conditions, name, "qwchat", f"{preset}, {case}", cell, None, speed, "tokens/s")
        for case, pair in found.items()
        for cell, speed in zip(("prefill", "decode"), pair, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=24)
    add_results_option(parser)
    options = parser.parse_args(arguments)
    with qwchat.load(options.model, threads=options.threads, context=1024, verify=False) as model:
        found, worst = measure(model, options.rounds, options.prompt_tokens, options.new_tokens)
        threads = model.threads
    read, written = found[CASES[0].name]
    print(f"{options.model.name}, {threads} threads, medians of {options.rounds} rounds")
    print(f"other processes took up to {worst:.0%} of a core")
    for name, (prefill, decode) in found.items():
        losses = f"loss {1 - prefill / read:5.0%} / {1 - decode / written:5.0%}"
        print(f"{name:24} prefill {prefill:8.1f} tok/s   decode {decode:7.1f} tok/s   {losses}")
    print(json.dumps({"model": options.model.name, "threads": threads, "tokens_per_second": found, "disturbed": worst}))
    append(options.results, measurements(options.model.name, found, Conditions.of_this_run("busy_core", threads)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
