"""Measure what code for GPUs adds to a start on a machine without one.

    python -m benchmarks.gpu_startup MODEL

Runs `qwchat -p Hello -m MODEL` under `-X importtime` and adds up the modules that only a GPU needs, without what they
import besides; then it measures the look-up of the driver in processes of their own. A model of less than 64 MB stays
on the CPU, and the driver is not looked up for it. Prints the median of each part in milliseconds, and their sum, which
must not exceed 5 ms: otherwise the exit code is 1. The machine should be idle.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence

from qwchat.chat.view.table import format_table

MOST_MILLISECONDS = 5.0
MODULES = re.compile(
    r"qwchat\.(placement|gpu_\w+|cuda(\.\w+)*|cli\.upload_status|model\.(gpu_memory|split_decoder|logit_rows))"
)
_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")
_PROGRAM = "import sys; from qwchat.cli.main import main; sys.exit(main())"
_LOOK_UP = """
import time
from qwchat.cuda.library import load_library
from qwchat.cuda import driver_errors
from qwchat.errors import GpuError
started = time.perf_counter()
try:
    load_library()
except GpuError:
    pass
print(time.perf_counter() - started)
"""


def module_times(trace: str) -> dict[str, float]:
    """Return the milliseconds of each module that only a GPU needs, from the output of `-X importtime`."""
    found = {name: int(microseconds) / 1000 for microseconds, name in _LINE.findall(trace)}
    return {name: time for name, time in found.items() if MODULES.fullmatch(name)}


def medians(rounds: Iterable[dict[str, float]]) -> dict[str, float]:
    """Return the median of each name over the rounds that have it."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    for each in rounds:
        for name, time in each.items():
            times[name].append(time)
    return {name: statistics.median(values) for name, values in times.items()}


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    # With this variable, Python compiles every module of a checkout at every start; an installation never does.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    ran = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)
    if ran.returncode:
        raise SystemExit(f"{' '.join(command[:4])} … ended with {ran.returncode}:\n{ran.stderr[-2000:]}")
    return ran


def _start(model: str) -> dict[str, float]:
    words = ("-q", "-p", "Hello", "-m", model, "--max-tokens", "1")
    return module_times(_run([sys.executable, "-X", "importtime", "-c", _PROGRAM, *words]).stderr)


def _look_up() -> dict[str, float]:
    return {"look-up of the driver": 1000 * float(_run([sys.executable, "-c", _LOOK_UP]).stdout)}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="the share of GPU code in a start without a GPU")
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    _start(options.model)  # Compiles and converts what is missing.
    starts = [_start(options.model) for _ in range(options.rounds)]
    found = medians(starts)
    if any(name.startswith("qwchat.cuda") for name in found):
        found |= medians(_look_up() for _ in range(options.rounds))
    total = sum(found.values())
    rows = [(name, f"{time:.2f}") for name, time in found.items()]
    print(format_table(("", "ms"), [*rows, ("all", f"{total:.2f}")], right=(1,)))
    return int(total > MOST_MILLISECONDS)


if __name__ == "__main__":
    sys.exit(main())
