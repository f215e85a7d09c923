"""Make cases, run them in forked processes, and count what went wrong."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from tests.forks import freeze
from tests.fuzz import corpus, server
from tests.fuzz.base import QUESTION, SESSION, Base, make_checkpoints
from tests.fuzz.case import Case, write
from tests.fuzz.checks import complaint
from tests.fuzz.server import Outcome, ask
from tests.fuzz.surfaces import (
    checkpoints,
    generation,
    gguf,
    models,
    sessions,
    settings,
    snapshots,
    templates,
    tokenizers,
)

SURFACES = {
    each.NAME: each.make
    for each in (models, checkpoints, gguf, tokenizers, templates, generation, sessions, snapshots, settings)
}
CaseId = tuple[str, int | str]
"""A surface and the number of a case, or "corpus" and the name of a known attack."""


@dataclass(frozen=True)
class Finding:
    """Command that went wrong: its case, how the case was made, the command, and the complaint."""

    surface: str
    number: int | str
    title: str
    command: str
    complaint: str

    @property
    def kind(self) -> str:
        """The complaint without numbers, names and values, which findings of one fault have in common."""
        return re.sub(r"\d[\d,._]*|'[^']*'|\"[^\"]*\"|/\S+", "*", self.complaint)[:120]


@dataclass
class Tally:
    """Figures of the cases of one surface."""

    cases: int = 0
    commands: int = 0
    processor: float = 0.0
    slowest: float = 0.0
    slowest_case: int | str = 0
    memory: int = 0
    memory_case: int | str = 0
    codes: dict[int, int] = field(default_factory=dict)

    def add(self, number: int | str, outcome: Outcome) -> None:
        """Count a command."""
        self.commands += 1
        self.processor += outcome.processor
        self.codes[outcome.code] = self.codes.get(outcome.code, 0) + 1
        if outcome.processor > self.slowest:
            self.slowest, self.slowest_case = outcome.processor, number
        if outcome.memory > self.memory:
            self.memory, self.memory_case = outcome.memory, number

    def merge(self, other: Tally) -> None:
        """Add the figures of another process."""
        self.cases += other.cases
        self.commands += other.commands
        self.processor += other.processor
        for code, count in other.codes.items():
            self.codes[int(code)] = self.codes.get(int(code), 0) + count
        if other.slowest > self.slowest:
            self.slowest, self.slowest_case = other.slowest, other.slowest_case
        if other.memory > self.memory:
            self.memory, self.memory_case = other.memory, other.memory_case


def program(arguments: Sequence[str]) -> int:
    """Run the command line in this process and return its exit code."""
    from qwchat.cli.main import main

    try:
        main(list(arguments))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def work_folder() -> Path:
    """Make a folder for bases and cases, in memory if possible."""
    memory = Path("/dev/shm")
    fast = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="qwchat-fuzz-", dir=fast)).resolve()


def _keep_parser() -> None:
    """Build the parser of the command line only once, since it takes most of the time of a short command."""
    import typer.main

    from qwchat.cli import app

    app.make_command_line = functools.cache(app.make_command_line)
    typer.main.get_command = functools.cache(typer.main.get_command)


def prepare(folder: Path) -> Base:
    """Make the bases under `folder` with the program itself, so that this process has imported all modules.

    The output is dropped. The kernels are compiled here if the user's cache lacks them.
    """
    _keep_parser()
    make_checkpoints(folder)
    base = Base(
        folder / "checkpoint", folder / "sharded", folder / "gguf", folder / "model", folder / "sessions" / SESSION
    )
    own = {"QWCHAT_CONFIG": "config", "QWCHAT_MODELS": "models", "QWCHAT_SESSIONS": "sessions"}
    os.environ.update({name: str(folder / place) for name, place in own.items()})
    os.environ["QWCHAT_THREADS"] = "1"
    model = str(base.model)
    _run("convert", str(base.checkpoint), model)
    _run("-p", "hello you, one two three", "-m", model, "--session", "base", "--snapshot", "on", *QUESTION)
    [made] = (folder / "sessions").iterdir()
    made.rename(base.session)
    following = ("-p", "and then?", "-m", model, "--resume", SESSION, "--no-save", "--snapshot", "off", *QUESTION)
    (base.session / "answer").write_text(_run(*following), encoding="utf-8")
    for words in (
        ("chat", "-m", model, "--resume", SESSION, "--no-save"),
        ("list", "--json"),
        ("show", model),
        ("show", str(base.checkpoint)),
        *(
            ("convert", str(base.sharded), str(folder / preset), "--preset", preset)
            for preset in ("q8", "lin4", "dense")
        ),
        ("convert", str(base.sharded), str(folder / "other"), "--dry-run", "--json"),
        ("convert", str(base.gguf), str(folder / "imported")),
        ("show", str(base.gguf)),
        ("-p", "1", "-m", model, "--choices", "a", "--json"),
        *(("config", *rest) for rest in (("show",), ("check",), ("set", "temp", "1"), ("get", "temp"))),
        *(("sessions", *rest) for rest in (("list",), ("show", SESSION), ("grep", "x"))),
        *(("sessions", "export", SESSION, str(folder / f"x.{form}")) for form in ("md", "html", "json")),
    ):
        _run(*words)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the program leaves it ignored at its end
    freeze()
    return replace(base, code=_kept_code())


def _kept_code() -> dict[str, bytes]:
    """Return the compiled code in the user's cache by its path in the cache folder."""
    folders = set()
    for module in server.program_modules():
        folders |= {value.folder for value in vars(module).values() if hasattr(type(value), "writable_folder")}
        if callable(found := getattr(module, "cache_folder", None)):
            folders.add(found())
    files = [file for folder in sorted(folders) if folder.is_dir() for file in sorted(folder.iterdir())]
    # Folders of Numba and tables of tokenizers are not needed.
    return {
        f"{file.parent.name}/{file.name}": file.read_bytes() for file in files if file.name in ("objects", "probes")
    }


def _run(*arguments: str) -> str:
    """Run a command that must succeed (grep and check may end with 1) and return its standard output."""
    out, errors = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    stdin = io.TextIOWrapper(io.BytesIO(b""), encoding="utf-8")
    streams = (sys.stdin, sys.stdout, sys.stderr)
    sys.stdin, sys.stdout, sys.stderr = stdin, out, errors
    try:
        code = program(arguments)
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
    for stream in (out, errors):
        stream.flush()
    if code not in (0, 1):
        raise RuntimeError(f"the base: {' '.join(arguments)}: {errors.buffer.getvalue().decode()}")
    return out.buffer.getvalue().decode()


def case_of(case_id: CaseId, seed: int, base: Base) -> Case:
    """Make a case, with the same bytes for the same seed on every machine with the same base."""
    surface, number = case_id
    if isinstance(number, str):
        return corpus.CASES[number](base)
    return SURFACES[surface](Random(f"{seed}:{surface}:{number}"), number, base)


def try_case(case: Case, root: Path) -> Iterator[tuple[str, Outcome, str]]:
    """Write a case under `root` and run its commands.

    Yields:
        The command line, the outcome, and the complaint.
    """
    root.mkdir(mode=0o700)
    write(case, root)
    for each in case.commands:
        outcome = ask(program, case, each, root)
        yield " ".join(each.arguments)[:300], outcome, complaint(each, outcome, root)


def run_cases(
    cases: Iterable[CaseId], seed: int, base: Base, root: Path, keep: Path | None = None
) -> tuple[dict[str, Tally], list[Finding]]:
    """Run cases one after the other in child processes."""
    tallies: dict[str, Tally] = {}
    findings: list[Finding] = []
    for case_id in cases:
        case = case_of(case_id, seed, base)
        tally = tallies.setdefault(case_id[0], Tally())
        tally.cases += 1
        failed = False
        for words, outcome, wrong in try_case(case, root):
            tally.add(case_id[1], outcome)
            if wrong:
                failed = True
                findings.append(Finding(*case_id, case.title, words, wrong))
                if findings[-1].kind not in {each.kind for each in findings[:-1]}:
                    print(f"{case_id[0]} {case_id[1]}: {wrong}", file=sys.stderr, flush=True)
                break
        if failed and keep is not None:
            shutil.copytree(
                root, keep / f"{case_id[0]}-{case_id[1]}", symlinks=True, ignore=_no_specials, dirs_exist_ok=True
            )
        shutil.rmtree(root)
    return tallies, findings


def _no_specials(folder: str, names: list[str]) -> list[str]:
    """Return the names of files that cannot be copied: pipes and huge sparse files."""
    paths = [Path(folder) / name for name in names]
    return [p.name for p in paths if p.is_fifo() or (p.is_file() and not p.is_symlink() and p.stat().st_size > 1 << 26)]


def run_parallel(
    cases: Sequence[CaseId],
    seed: int,
    base: Base,
    folder: Path,
    jobs: int,
    keep: Path | None = None,
    minutes: float = 0,
) -> tuple[dict[str, Tally], list[Finding]]:
    """Run cases in `jobs` processes. With `minutes`, continue with further cases of each surface for that long."""
    results = [folder / f"result-{job}" for job in range(jobs)]
    workers = []
    for job, result in enumerate(results):
        worker = os.fork()
        if not worker:
            _work(cases, seed, base, folder / f"case-{job}", result, (job, jobs), keep, minutes)
        workers.append(worker)
    failed = [worker for worker in workers if os.waitpid(worker, 0)[1]]
    if failed:
        raise RuntimeError("a process of the fuzzer failed")
    tallies: dict[str, Tally] = {}
    findings: list[Finding] = []
    for result in results:
        made = json.loads(result.read_text(encoding="utf-8"))
        for surface, values in made["tallies"].items():
            tallies.setdefault(surface, Tally()).merge(Tally(**values))
        findings += [Finding(**values) for values in made["findings"]]
    return tallies, findings


def _work(
    cases: Sequence[CaseId],
    seed: int,
    base: Base,
    root: Path,
    result: Path,
    share: tuple[int, int],
    keep: Path | None,
    minutes: float,
) -> None:
    """Run the share of one worker, write its result and exit."""
    code = 1
    try:
        job, jobs = share
        mine: Iterable[CaseId] = cases[job::jobs]
        if minutes:
            mine = _endless(cases, share, time.monotonic() + 60 * minutes)
        tallies, findings = run_cases(mine, seed, base, root, keep)
        made = {
            "tallies": {name: vars(tally) for name, tally in tallies.items()},
            "findings": [vars(finding) for finding in findings],
        }
        result.write_text(json.dumps(made), encoding="utf-8")
        code = 0
    except BaseException:  # noqa: BLE001  # The process must end here in any case.
        import traceback

        with contextlib.suppress(OSError):
            traceback.print_exc()
    finally:
        os._exit(code)


def _endless(cases: Sequence[CaseId], share: tuple[int, int], until: float) -> Iterator[CaseId]:
    """Yield the share of the cases, then further ones in turn until the time is over."""
    job, jobs = share
    surfaces = list(dict.fromkeys(surface for surface, number in cases if isinstance(number, int)))
    yield from cases[job::jobs]
    number = 1 + max((number for _, number in cases if isinstance(number, int)), default=0)
    while time.monotonic() < until:
        for place, surface in enumerate(surfaces):
            if (number * len(surfaces) + place) % jobs == job and time.monotonic() < until:
                yield surface, number
        number += 1
