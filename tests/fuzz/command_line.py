"""Options and output of `python -m tests.fuzz`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

from tests.fuzz import corpus
from tests.fuzz.base import Base
from tests.fuzz.runner import (
    SURFACES,
    CaseId,
    Finding,
    Tally,
    case_of,
    prepare,
    run_parallel,
    try_case,
    work_folder,
)

_SHOWN = 5  # findings of one kind that are printed


def main() -> int:
    """Run the command line and return the exit code."""
    options = _options()
    if not sys.platform.startswith("linux"):
        print("note: memory is limited on Linux only", file=sys.stderr)
    folder = work_folder()
    try:
        base = prepare(folder)
        if options.case is not None:
            return _replay(options, base, folder)
        cases = _cases(options)
        started = time.monotonic()
        tallies, findings = run_parallel(cases, options.seed, base, folder, options.jobs, options.keep, options.minutes)
        _report(tallies, findings, options, time.monotonic() - started)
        return 1 if findings else 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Run the command line on hostile files.")
    parser.add_argument(
        "--surface", action="append", choices=[*SURFACES, "corpus"], help="only this surface (repeatable)"
    )
    parser.add_argument("--cases", type=int, default=100, help="cases of each surface")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--minutes", type=float, default=0.0, help="run further cases for that long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", help="run one case and print its whole output")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    parser.add_argument("--keep", type=Path, help="copy the files of failed cases to this folder")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser.parse_args()


def _cases(options: argparse.Namespace) -> list[CaseId]:
    """Return the corpus, followed by the surfaces in turn."""
    surfaces = options.surface or [*SURFACES, "corpus"]
    named: list[CaseId] = [("corpus", name) for name in corpus.CASES] if "corpus" in surfaces else []
    numbers = range(options.first, options.first + options.cases)
    return named + [(surface, number) for number in numbers for surface in surfaces if surface != "corpus"]


def _replay(options: argparse.Namespace, base: Base, folder: Path) -> int:
    [surface] = options.surface or ["corpus"]
    case_id = (surface, options.case if surface == "corpus" else int(options.case))
    case = case_of(case_id, options.seed, base)
    root = folder / "case-0"  # as in the first process: the path is part of inputs and outputs
    print(f"{surface} {options.case}: {case.title}")
    for name, content in case.files.items():
        print(f"  {name}: {str(content)[:2_000]}")
    for name, text in case.environment.items():
        print(f"  {name}={text[:500]!r}")
    wrong = ""
    for words, outcome, wrong in try_case(case, root):
        print(f"$ qwchat {words}\n  exit code {outcome.code}, {outcome.processor:.2f} s, {outcome.memory >> 20} MiB")
        print(
            f"  stdout: {outcome.out[:2_000]!r}\n  stderr: {outcome.errors.decode(errors='backslashreplace')[:4_000]}"
        )
        print(f"  wrong: {wrong}" if wrong else "  nothing is wrong")
        if wrong:
            break
    if options.keep is not None:
        shutil.copytree(root, options.keep, symlinks=True, dirs_exist_ok=True)
    return 1 if wrong else 0


def _report(tallies: dict[str, Tally], findings: list[Finding], options: argparse.Namespace, seconds: float) -> None:
    if options.json:
        values = {name: vars(tally) for name, tally in tallies.items()}
        listed = [vars(each) | {"replay": _command(each, options)} for each in findings]
        print(json.dumps({"seconds": seconds, "tallies": values, "findings": listed}, indent=1))
        return
    for name, tally in tallies.items():
        codes = ", ".join(f"{code}: {count:,}" for code, count in sorted(tally.codes.items()))
        print(
            f"{name:12} {tally.cases:7,} cases  {1000 * tally.processor / tally.commands:5.0f} ms a command, "
            f"at most {tally.slowest:.2f} s (case {tally.slowest_case}) and {tally.memory >> 20:,} MiB "
            f"(case {tally.memory_case}); exit codes {codes}"
        )
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(f"{finding.surface}: {finding.kind}", []).append(finding)
    for kind, found in sorted(kinds.items(), key=lambda item: -len(item[1])):
        print(f"\n{len(found):5} × {kind}")
        for each in found[:_SHOWN]:
            print(f"        {each.title}, {each.command}: {each.complaint}\n        {_command(each, options)}")
    print(f"\n{sum(tally.cases for tally in tallies.values()):,} cases in {seconds:.0f} s: {len(findings)} went wrong")


def _command(finding: Finding, options: argparse.Namespace) -> str:
    return f"python -m tests.fuzz --seed {options.seed} --surface {finding.surface} --case {finding.number}"
