"""Measure the time from the start of the process to the first token on stdout: cold, warm, and beside llama.cpp.

    python -m benchmarks.startup MODEL
    python -m benchmarks.startup MODEL --gguf FILE.gguf --rounds 9

`cold` is a first run: QWCHAT_CACHE is empty, so the kernels are compiled. `warm` finds compiled kernels. Both run the
command line, `qwchat -p Hello --jsonl`, and are timed until the first text event arrives on stdout; with Qwen2's
template, "Hello" is a prompt of 20 tokens. `llama.cpp` is a Python process that loads the file with default settings
(repacking, flash attention where it helps) and evaluates as many tokens, without template and tokenizer. `of that,
llama.cpp` excludes the start of Python and the import of the bindings. Files are in the page cache, since a first round
that does not count has read them.

Prints a table of medians, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measurements import Conditions, Measurement, add_results_option, append, model_and_preset
from benchmarks.real_shapes import qwchat
from quant.machine import usable_processors
from qwchat.chat.view.table import format_table

PROMPT = "Hello"
LLAMA = """
import sys, time
import llama_cpp
from benchmarks.llama_engine import start_llama
path, threads, count = sys.argv[1].encode(), int(sys.argv[2]), int(sys.argv[3])
started = time.perf_counter()
start_llama()
model = llama_cpp.llama_model_load_from_file(path, llama_cpp.llama_model_default_params())
params = llama_cpp.llama_context_default_params()
params.n_ctx, params.n_threads, params.n_threads_batch = 4096, threads, threads
context = llama_cpp.llama_init_from_model(model, params)
tokens = (llama_cpp.llama_token * count)(*range(1000, 1000 + count))
assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, count)) == 0
llama_cpp.llama_get_logits_ith(context, -1)
print('{"event": "text", "seconds": %f}' % (time.perf_counter() - started), flush=True)
"""


def time_to_text(command: Sequence[str], environment: Mapping[str, str]) -> tuple[float, list[dict[str, Any]]]:
    """Run `command` and return the seconds to its first text event, and all events.

    Raises SystemExit if the command fails or has no text event.
    """
    # With this variable, Python compiles every module of a checkout at every start; an installation never does.
    compiled = {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryFile("w+") as stderr:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True, env=compiled
        )
        assert process.stdout is not None
        events: list[dict[str, Any]] = []
        seconds = None
        for line in process.stdout:
            now = time.perf_counter() - started
            events.append(json.loads(line))
            if seconds is None and events[-1]["event"] == "text":
                seconds = now
        if process.wait() or seconds is None:
            stderr.seek(0)
            raise SystemExit(f"{' '.join(command[:4])} … ended with {process.returncode}:\n{stderr.read()}")
        return seconds, events


def ours(options: argparse.Namespace, cache: str | None) -> tuple[float, list[dict[str, Any]]]:
    """Run the command line once, with `cache` as QWCHAT_CACHE if it is given."""
    settings = ("--temp", "0", "--max-tokens", "2", "--threads", str(options.threads), "--jsonl", "-q")
    command = qwchat("-m", str(options.model), "-p", PROMPT, *settings)
    return time_to_text(command, os.environ if cache is None else {**os.environ, "QWCHAT_CACHE": cache})


def theirs(options: argparse.Namespace, prompt_tokens: int) -> tuple[float, float]:
    """Run llama.cpp once and return the seconds of the process, and of llama.cpp in it."""
    command = [sys.executable, "-c", LLAMA, str(options.gguf), str(options.threads), str(prompt_tokens)]
    seconds, events = time_to_text(command, os.environ)
    return seconds, float(events[0]["seconds"])


def prompt_tokens_in(events: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of prompt tokens from the event at the end of a reply."""
    return int(events[-1]["tokens"]["prompt"])


def measure(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all rounds, with the engines alternating, and return the figures."""
    rows: dict[str, list[float]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.cold_rounds):
            cache = str(Path(folder) / str(number))
            rows["cold"].append(ours(options, cache)[0])
            say(f"cold {rows['cold'][-1]:.2f} s")
    _, events = ours(options, None)
    tokens = prompt_tokens_in(events)
    if options.gguf:
        rows |= {"llama.cpp": [], "of that, llama.cpp": []}
        theirs(options, tokens)
    for _ in range(options.rounds):
        rows["warm"].append(ours(options, None)[0])
        if options.gguf:
            whole, inside = theirs(options, tokens)
            rows["llama.cpp"].append(whole)
            rows["of that, llama.cpp"].append(inside)
    return {"model": str(options.model), "threads": options.threads, "prompt_tokens": tokens, "seconds": rows}


def as_text(figures: Mapping[str, Any]) -> str:
    """Return the table: median, lowest and highest of each row that has rounds."""
    rows = [
        (name, f"{statistics.median(times):.2f} s", f"{min(times):.2f}", f"{max(times):.2f}", str(len(times)))
        for name, times in figures["seconds"].items()
        if times
    ]
    head = f"process start to first token, {figures['prompt_tokens']} tokens of prompt, {figures['threads']} threads"
    return f"{head}\n\n{format_table(('', 'median', 'lowest', 'highest', 'rounds'), rows, right=(1, 2, 3, 4))}"


def measurements(figures: Mapping[str, Any], conditions: Conditions) -> list[Measurement]:
    """Return a measurement for each row that has rounds."""
    model, preset = model_and_preset(figures["model"])
    settings = {"cold": f"{preset}, cold", "warm": f"{preset}, warm", "llama.cpp": "default settings"}
    return [
        Measurement(
            conditions, model, "llama.cpp" if row == "llama.cpp" else "qwchat", setting, "start to first token",
            figures["prompt_tokens"], statistics.median(times), "s", min(times), max(times),
        )
        for row, setting in settings.items()
        if (times := figures["seconds"].get(row))
    ]  # fmt: skip


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="time from process start to first token")
    parser.add_argument("model", type=Path, help="a converted model")
    parser.add_argument("--gguf", type=Path, help="the same model for llama.cpp")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cold-rounds", type=int, default=1, help="rounds with an empty cache")
    parser.add_argument("--threads", type=int, default=len(usable_processors()))
    add_results_option(parser)
    options = parser.parse_args()
    figures = measure(options, lambda text: print(text, file=sys.stderr, flush=True))
    print(as_text(figures), end="\n\n")
    print(json.dumps(figures))
    append(options.results, measurements(figures, Conditions.of_this_run("startup", options.threads)))


if __name__ == "__main__":
    main()
