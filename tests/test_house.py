"""Rules of the project that a program can check."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clocks import PATIENCE_SECONDS

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SOURCES = ("quant", "qwchat", "models/recipe", "benchmarks", "tests")
MOST_LINES = 450


def test_import_contracts() -> None:
    checked = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_slow_tests_and_tiers(pytestconfig: pytest.Config) -> None:
    assert any(line.startswith("slow:") for line in pytestconfig.getini("markers"))
    runs = [line for line in (REPOSITORY / ".ci" / "run").read_text().splitlines() if "-m pytest" in line]
    assert ["--slow" in line for line in runs] == [False, True, True, True, True]  # README, all, CUDA, docs, oracle.


def test_no_source_has_a_branch_for_windows() -> None:
    """Linux and macOS share the file locks, forks and terminals of POSIX."""
    foreign = re.compile(r"""["']win32["']|os\.name\b|msvcrt|winreg|prompt_toolkit\.(?:in|out)put\.win""")
    found = [
        f"{file.relative_to(REPOSITORY)}:{number}"
        for folder in ("quant", "qwchat", "benchmarks")
        for file in sorted((REPOSITORY / folder).rglob("*.py"))
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if foreign.search(line)
    ]
    assert found == []
    assert "on Linux or macOS" in README


@pytest.mark.parametrize("folder", SOURCES)
def test_files_are_short(folder: str) -> None:
    files = (REPOSITORY / folder).rglob("*.py")
    long = {str(file): count for file in files if (count := len(file.read_text("utf-8").splitlines())) > MOST_LINES}
    assert long == {}
