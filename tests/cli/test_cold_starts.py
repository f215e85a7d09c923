"""First runs that start at the same time: one compiles, the others wait and say so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwchat.models_folder import embedded_checkpoint, is_checkpoint

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 6
# Runs the program, which lists the modules imported for compiling at the end of standard error.
RUN = """
import json, sys
from qwchat.cli.main import main
try:
    main(sys.argv[1:])
finally:
    names = ("numba", "qwchat.cpu.forward", "quant.quantisers.compiled.q4", "quant.quantisers.compiled.q8")
    print(json.dumps([name for name in names if name in sys.modules]), file=sys.stderr)
"""
WAITING = "qwchat: another qwchat is compiling the {}: waiting for it"

pytestmark = pytest.mark.skipif(
    not is_checkpoint(embedded_checkpoint()), reason="models/mini holds no weights yet: models/recipe trains them"
)


def started(tmp_path: Path, arguments: list[list[str]]) -> list[tuple[list[str], list[str]]]:
    """Run the program once for each list of arguments, all at once, with an empty cache.

    Returns:
        For each process, its lines on standard error and the modules that it imported.
    """
    cache = {"QWCHAT_CACHE": str(tmp_path / "cache"), "QWCHAT_MODELS": str(tmp_path / "models")}
    environment = {**os.environ, **cache, "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", RUN, *words], env=environment, text=True, stdout=-1, stderr=-1, cwd=tmp_path
        )
        for words in arguments
    ]
    ends = [process.communicate() for process in running]
    assert [(process.returncode, end) for process, end in zip(running, ends, strict=True) if process.returncode] == []
    lines = [errors.splitlines() for _, errors in ends]
    return [(each[:-1], json.loads(each[-1])) for each in lines]


def count(ends: list[tuple[list[str], list[str]]], module: str) -> int:
    """Return the number of processes that imported `module`."""
    return sum(module in modules for _, modules in ends)


@pytest.mark.slow
@pytest.mark.timeout(900)  # Everything is compiled, however busy the machine is.
def test_one_of_many_first_runs_compiles_the_kernels(tmp_path: Path) -> None:
    ends = started(tmp_path, [["-p", "Hello", "--max-tokens", "1"]] * PROCESSES)
    assert count(ends, "qwchat.cpu.forward") == 1
    assert count(ends, "quant.quantisers.compiled.q4") == 1
    assert count(ends, "numba") <= 2
    for lines, modules in ends:
        notices = [line for line in lines if line == WAITING.format("kernels")]
        assert len(notices) <= 1
        # A late process finds everything compiled, but at least one process has to wait.
        assert not notices or "qwchat.cpu.forward" not in modules
    assert any(WAITING.format("kernels") in lines for lines, _ in ends)


@pytest.mark.slow
def test_one_of_many_conversions_compiles_the_quantiser(tmp_path: Path) -> None:
    source = str(embedded_checkpoint())
    runs: list[Any] = [["convert", source, str(tmp_path / f"model{n}"), "--preset", "q8"] for n in range(PROCESSES)]
    ends = started(tmp_path, runs)
    assert count(ends, "quant.quantisers.compiled.q8") == count(ends, "numba") == 1
    assert any(WAITING.format("quantisers") in lines for lines, _ in ends)
    again = started(tmp_path, [["convert", source, str(tmp_path / "again"), "--preset", "q8"]])
    assert count(again, "numba") == 0
