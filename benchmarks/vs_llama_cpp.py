"""Measure qwchat, llama.cpp and ik_llama.cpp in one run, on the same weights, threads and prompts.

    CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF" pip install -e '.[bench]'
    python -m benchmarks.vs_llama_cpp qwen2-0.5b-instruct --work /somewhere/with/5/GB
    python -m benchmarks.vs_llama_cpp qwen2-7b-instruct --work /somewhere/with/60/GB --rounds 3 --cells prefill:128,512
    python -m benchmarks.vs_llama_cpp qwen2-1.5b-instruct --work DIR --ik-python /path/to/python

CMAKE_ARGS matters: without GGML_NATIVE the package is built for any x86-64 of the last ten years and is slower. The
other two flags leave out the parts that process images.

`--ik-python` is a Python with ik-llama-cpp-python, in an environment of its own; benchmarks.ik_engine says how to build
it. Without the option only llama.cpp is measured. If the library of ik_llama.cpp does not use all instruction sets of
this machine, the output and the records say so.

A random bf16 checkpoint of a real shape is converted to our formats and to the rivals' (Q4_0, Q4_K_M, Q8_0; IQ4_KS for
ik_llama.cpp where rows allow its blocks of 256), which are compared by class: 4 bits and 8 bits. First, a survey finds
the settings of each rival worth measuring in each cell (repacking, flash attention, KV cache in f16 or 8 bits). Then
these and ours alternate, round by round, each in a process of its own. In every cell, the median of our best contender
is compared with that of the best of all rivals. Each
round starts with a probe of the read bandwidth and the int8 peak; shares refer to the medians of the probes.

A measurement during which other processes used more than a tenth of a core is repeated up to eight times, and the
least disturbed one counts.

Prefill is the time from the empty cache to the logits of the last token of a prompt, decode that of single tokens at a
depth. Our figures include sampling, the rivals' do not. Their cache is filled with copies of its first 64 positions
(benchmarks.llama_state), ours by evaluation. Models in the work folder are used again. Prints one JSON line
at the end, which includes what was pruned and why.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import quant
from benchmarks.cells import (
    SURVEY_SECONDS,
    Cell,
    Contender,
    ContenderResult,
    Setting,
    best,
    prune,
    rivals,
    rounds_for,
    survey_order,
)
from benchmarks.comparison_output import as_data, as_text, measurements
from benchmarks.engines import Rival
from benchmarks.gguf_files import make_gguf
from benchmarks.instruction_sets import ik_build
from benchmarks.make_checkpoint import PUBLISHED, copy_tokenizer, make_checkpoint, read_config
from benchmarks.measurements import Conditions, add_results_option, append
from benchmarks.processes import EngineError, Pool, Process, busy_seconds, open_context
from quant.machine import usable_processors

CLASSES = {"4 bits": (("q4",), ("Q4_0", "Q4_K_M")), "8 bits": (("q8",), ("Q8_0",))}
IK_FORMATS = {"4 bits": ("IQ4_KS",), "8 bits": ()}  # besides those of llama.cpp
IK_BLOCK = 256  # weights of a row that IQ4_KS stores together
SURVEY_TOKENS = 8
MEMORY_CONTEXT = 4096
WARM_UP_TOKENS = 64
SURVEY_SHARE = 0.5  # share of the minutes of a class
ATTEMPTS, DISTURBED, PAUSE_SECONDS = 8, 0.1, 3.0  # repeat while other processes use 0.1 cores


class Comparison:
    """Comparison of one shape and one class of formats."""

    def __init__(self, files: dict[str, Path], options: argparse.Namespace) -> None:
        self.files, self.options = files, options
        self.pool = Pool(self.start)
        self.results: dict[Cell, list[ContenderResult]] = {}
        self.probes: list[dict[str, float]] = []
        self.started = time.perf_counter()

    def spent(self) -> float:
        """Return the share of the class's time limit that has passed."""
        return (time.perf_counter() - self.started) / (60 * self.options.minutes)

    def start(self, contender: Contender) -> Process:
        """Start a process for a contender."""
        return Process(
            contender.engine,
            self.files[contender.format],
            threads=self.options.threads,
            repack=contender.setting.repack,
            python=self.options.ik_python if contender.engine == "ik_llama.cpp" else Path(sys.executable),
        )

    def timed(self, contender: Contender, cell: Cell, count: int, seed: int) -> tuple[float, float]:
        """Measure a contender in an open context, repeatedly if other processes disturb it.

        Returns:
            Tokens per second, and the cores that other processes used, of the least disturbed attempt.
        """
        process = self.pool.process_of(contender)
        attempts = []
        for _ in range(ATTEMPTS):
            wall, busy, own = time.perf_counter(), busy_seconds(), process.cpu_seconds()
            rate = self.attempt(process, contender, cell, count, seed)
            wall, busy, own = time.perf_counter() - wall, busy_seconds() - busy, process.cpu_seconds() - own
            attempts.append((max(0.0, busy - own) / wall, rate))
            # CPU time is counted in ticks of 10 ms, so a few ticks mean nothing.
            if busy - own < max(DISTURBED * wall, 0.05):
                break
            time.sleep(PAUSE_SECONDS)
        others, rate = min(attempts)
        return rate, others

    def attempt(self, process: Process, contender: Contender, cell: Cell, count: int, seed: int) -> float:
        """Return the tokens per second of one measurement."""
        if cell.kind == "prefill":
            answer = process.ask("prefill", key=contender.label, tokens=cell.size, seed=seed)
        else:
            answer = process.ask("decode", key=contender.label, depth=cell.size, count=count)
        return cell.tokens(count) / float(answer["seconds"])

    def set_up(self, contender: Contender, cell: Cell) -> None:
        """Open a context for the cell and fill it or warm it up."""
        process = self.pool.process_of(contender)
        open_context(process, contender, cell.context(self.options.new_tokens))
        if cell.kind == "decode":
            process.ask("fill", key=contender.label, depth=cell.size)
        else:
            process.ask("prefill", key=contender.label, tokens=min(WARM_UP_TOKENS, cell.size), seed=0)

    def survey(self, contenders: Sequence[Contender], cells: Sequence[Cell]) -> None:
        """Measure every setting briefly in every cell, except those that were clearly slower in a smaller cell."""
        for contender in contenders:
            before: Cell | None = None
            rate = 0.0
            for cell in cells:
                if before is not None and before.kind != cell.kind:
                    before, rate = None, 0.0
                result = ContenderResult(contender)
                result.left_out = prune(result, self.results[before] if before else ())
                self.results.setdefault(cell, []).append(result)
                before = cell
                if not result.left_out and self.spent() > SURVEY_SHARE:
                    result.left_out = "out of time for the survey"
                if result.left_out or (cell.kind == "prefill" and rate and cell.size / rate > SURVEY_SECONDS):
                    continue
                try:
                    self.pool.keep([contender])
                    self.set_up(contender, cell)
                    result.survey = rate = self.timed(contender, cell, SURVEY_TOKENS, 1)[0]
                except EngineError as error:
                    result.left_out = f"refused: {error}"

    def measure(self, ours: Sequence[Contender], cells: Sequence[Cell]) -> None:
        """Run the rounds of every cell; the order of its contenders is reversed every other round."""
        before: Cell | None = None
        for cell in cells:
            if self.spent() > 1 and self.probes:
                say(f"  {cell.name}: out of time")
                continue
            surveyed = self.results.setdefault(cell, [])
            previous = self.results[before] if before is not None and before.kind == cell.kind else []
            chosen = [*ours, *rivals(cell, surveyed, previous)]
            before = cell
            known = {result.contender: result for result in surveyed}
            results = [known.get(contender) or ContenderResult(contender) for contender in chosen]
            surveyed += [result for result in results if result not in surveyed]
            self.pool.keep(chosen)
            ready = [result for result in results if self.ready(result, cell)]
            self.rounds(cell, ready, self.pool.process_of(ours[0]))
            say(f"  {cell.name}: " + "; ".join(f"{r.contender.label} {r.rate:.1f}" for r in results if r.rate))
        self.pool.keep([])

    def ready(self, result: ContenderResult, cell: Cell) -> bool:
        """Return True if the contender accepted the context of the cell."""
        try:
            self.set_up(result.contender, cell)
        except EngineError as error:
            result.left_out = f"refused: {error}"
        return not result.left_out

    def rounds(self, cell: Cell, results: Sequence[ContenderResult], prober: Process) -> None:
        """Probe the machine and measure the contenders, until the slowest of them has had its rounds."""
        number, wanted = 0, self.options.rounds
        while number < wanted and (number == 0 or self.spent() <= 1):
            self.probes.append(prober.ask("probe"))
            for result in results if number % 2 == 0 else reversed(results):
                rate, others = self.timed(result.contender, cell, self.options.new_tokens, 2 + number)
                result.rates.append(rate)
                result.others.append(others)
                wanted = rounds_for(cell.tokens(self.options.new_tokens) / rate, wanted)
            number += 1

    def footprint(self, contender: Contender) -> dict[str, Any]:
        """Return load time and memory with 4,096 tokens in the context."""
        with self.start(contender) as process:
            seconds = open_context(process, contender, MEMORY_CONTEXT)
            depth = MEMORY_CONTEXT - SURVEY_TOKENS - 4
            process.ask("prefill", key=contender.label, tokens=512, seed=1)
            process.ask("fill", key=contender.label, depth=depth)
            process.ask("decode", key=contender.label, depth=depth, count=SURVEY_TOKENS)
            about = {"contender": contender.label, "engine": contender.engine, "context": MEMORY_CONTEXT}
            return {**about, "load_seconds": seconds, **process.memory()}

    def footprints(self, cells: Sequence[Cell]) -> list[dict[str, Any]]:
        """Return the footprint of each file with the setting that was fastest in the first decode cell."""
        decode = next((cell for cell in cells if cell.kind == "decode"), cells[0])
        found = []
        for engine, name in dict.fromkeys(
            (each.contender.engine, each.contender.format) for each in self.results[decode]
        ):
            of_file = [
                each
                for each in self.results[decode]
                if (each.contender.engine, each.contender.format) == (engine, name)
            ]
            fastest = best(of_file, engine)
            if fastest is None:
                known = [result for result in of_file if result.survey is not None]
                fastest = max(known, key=lambda result: result.survey or 0.0, default=None)
            if fastest is not None:
                found.append(self.footprint(fastest.contender))
        return found


def say(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def rival_formats(name: str, shape: str, options: argparse.Namespace) -> dict[Rival, tuple[str, ...]]:
    """Return the formats of each rival that is measured, for a class of formats."""
    theirs = CLASSES[name][1]
    if options.ik_python is None:
        return {"llama.cpp": theirs}
    config = read_config(shape, options.published)
    fits = all(config[size] % IK_BLOCK == 0 for size in ("hidden_size", "intermediate_size"))
    return {"llama.cpp": theirs, "ik_llama.cpp": (*theirs, *IK_FORMATS[name]) if fits else theirs}


def make_files(shape: str, options: argparse.Namespace) -> dict[str, Path]:
    """Return the models in the work folder by format; make the missing ones."""
    ours = {name: options.work / f"{shape}-{name}" for each in options.classes for name in CLASSES[each][0]}
    wanted = [rival_formats(name, shape, options) for name in options.classes]
    kinds = list(dict.fromkeys(name for each in wanted for formats in each.values() for name in formats))
    theirs = {kind: options.work / f"{shape}-{kind}.gguf" for kind in kinds}
    files = ours | theirs
    if all(path.exists() for path in files.values()):
        return files
    checkpoint = options.work / shape
    if not checkpoint.exists():
        say(f"making {checkpoint}")
        unfinished = checkpoint.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        make_checkpoint(read_config(shape, options.published), unfinished)
        copy_tokenizer(options.published, unfinished)
        unfinished.rename(checkpoint)
    for preset, path in ours.items():
        if not path.exists():
            say(f"converting to {path}")
            for _ in quant.convert(checkpoint, path, preset=preset, threads=options.threads):
                pass
    say("making the GGUF files")
    make_gguf(checkpoint, options.work, kinds, options.threads, options.ik_python)
    return files


def compare(shape: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all classes of a shape, print their tables and return their data."""
    files = make_files(shape, options)
    classes: dict[str, Any] = {}
    for name in options.classes:
        say(f"{shape}, {name}")
        ours, theirs = CLASSES[name][0], rival_formats(name, shape, options)
        comparison = Comparison(files, options)
        contenders = survey_order(theirs)
        comparison.survey(contenders, options.cells)
        own = [Contender("qwchat", preset, Setting(kv, kv)) for preset in ours for kv in options.kv]
        comparison.measure(own, options.cells)
        work: dict[str, dict[str, Any]] = {}
        for contender in (*own, *contenders):
            if contender.format not in work:
                with comparison.start(contender) as process:
                    work[contender.format] = process.ask("work")
        memory = comparison.footprints(options.cells) if options.memory and comparison.spent() <= 1 else []
        classes[name] = as_data(comparison.results, comparison.probes, work, memory)
        print(as_text(f"{shape}, {name}, {options.threads} threads", classes[name]), end="\n\n", flush=True)
    if not options.keep:
        for path in [*files.values(), options.work / shape]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return classes


def parse_cells(texts: Sequence[str]) -> list[Cell]:
    """Parse texts such as "prefill:128,512" and "decode:0,4096" into cells. Raises ArgumentTypeError."""
    cells = []
    for text in texts:
        kind, _, sizes = text.partition(":")
        if kind not in ("prefill", "decode") or not all(size.isdecimal() for size in sizes.split(",")):
            raise argparse.ArgumentTypeError(f"{text!r}: expected prefill:128,512 or decode:0,4096")
        cells += [
            Cell("prefill" if kind == "prefill" else "decode", size) for size in sorted(map(int, sizes.split(",")))
        ]
    return cells


def read_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="qwchat and its rivals on the same weights")
    parser.add_argument("shapes", nargs="+", help="names in shapes.json")
    parser.add_argument(
        "--cells", nargs="+", default=["prefill:128,512,2048", "decode:0,4096,16384"], metavar="KIND:SIZE,SIZE"
    )
    parser.add_argument("--classes", nargs="+", choices=tuple(CLASSES), default=list(CLASSES))
    parser.add_argument("--kv", nargs="+", default=["f32", "q8"], help="kinds of our KV cache")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=30, help="time limit of each class; later cells are left out")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens of one decode measurement")
    parser.add_argument("--threads", type=int, default=len(usable_processors()))
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="folder of the models")
    parser.add_argument("--published", type=Path, default=PUBLISHED, help="folder of shapes.json and 7b-instruct/")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave out load time and memory")
    parser.add_argument("--no-keep", dest="keep", action="store_false", help="delete the models at the end")
    parser.add_argument("--ik-python", type=Path, metavar="PATH", help="Python that has ik-llama-cpp-python")
    add_results_option(parser)
    options = parser.parse_args()
    try:
        options.cells = parse_cells(options.cells)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    options.work.mkdir(parents=True, exist_ok=True)
    return options


def main() -> None:
    """Run the command line."""
    options = read_options()
    started = time.perf_counter()
    conditions = Conditions.of_this_run("vs_llama_cpp", options.threads)
    versions = {"llama-cpp-python": version("llama-cpp-python"), "qwchat": version("qwchat")}
    unused: dict[str, list[str]] = {}
    notes: dict[str, str] = {}
    if options.ik_python is not None:
        build = ik_build(options.ik_python)
        versions["ik-llama-cpp-python"], unused["ik_llama.cpp"] = build.version, build.unused
        if warning := build.warning("ik_llama.cpp"):
            say(warning)
            notes["ik_llama.cpp"] = f"built without {', '.join(build.unused)}"
    shapes = {}
    for shape in options.shapes:
        shapes[shape] = compare(shape, options)
        append(options.results, measurements(shape, shapes[shape], conditions, notes))
    seconds = round(time.perf_counter() - started, 1)
    result = {"threads": options.threads, "rounds": options.rounds, "new_tokens": options.new_tokens}
    result |= {"versions": versions, "unused_instructions": unused}
    print(json.dumps({**result, "seconds": seconds, "shapes": shapes}))


if __name__ == "__main__":
    main()
