"""Settings file and variables of Numba are not read, neither at import nor before compilation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
VARIABLES = {
    "NUMBA_CACHE_DIR": "cache-of-others",
    "NUMBA_DEBUG": "1",
    "NUMBA_DUMP_ASSEMBLY": "1",
    "NUMBA_DISABLE_JIT": "1",
    "NUMBA_BOUNDSCHECK": "1",
    "NUMBA_OPT": "0",
    "NUMBA_CPU_NAME": "generic",
    "NUMBA_HTML": "report.html",
    "LLVMLITE_ENABLE_IR_LAYER_TYPED_POINTERS": "0",
}
COMPILE = """
import os, sys, warnings
warnings.simplefilter("error")
before = dict(os.environ)
import yaml
from quant.native import backend, compiler
import llvmlite
assert dict(os.environ) == before
assert sys.modules["yaml"] is yaml
assert llvmlite.ir_layer_typed_pointers_enabled
defaults = {name: value for name, value in vars(backend.config).items() if name.isupper()}
assert compiler.subroutine(lambda x: x + 1)(2) == 3
os.environ["NUMBA_DUMP_IR"] = "1"
assert compiler.subroutine(lambda x: x + 2)(2) == 4
assert {name: value for name, value in vars(backend.config).items() if name.isupper()} == defaults
print({name: str(value) for name, value in sorted(defaults.items())})
"""
# Names of Numba's cache, which unpickles files, in Numba and in its variables.
PICKLED = re.compile(r"enable_caching|cache\s*=\s*True|NUMBA_CACHE_DIR|\bCACHE_DIR\b|import (?:pickle|marshal|shelve)")


def settings_in(folder: Path, variables: dict[str, str]) -> str:
    """Compile in `folder` and return all settings of Numba as text."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-P", "-c", COMPILE]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
def test_numba_sees_no_variables_and_no_settings_file(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    plain, hostile = tmp_path / "plain", tmp_path / "hostile"
    plain.mkdir()
    hostile.mkdir()
    lines = [f"{name.removeprefix('NUMBA_').lower()}: {value}" for name, value in VARIABLES.items()]
    (hostile / ".numba_config.yaml").write_text("\n".join(lines))
    assert settings_in(hostile, VARIABLES) == settings_in(plain, {})
    assert [path.name for path in hostile.iterdir()] == [".numba_config.yaml"]


def test_the_program_uses_no_cache_that_is_unpickled() -> None:
    sources = [path for package in ("quant", "qwchat") for path in (ROOT / package).rglob("*.py")]
    assert len(sources) > 100
    found = {str(path): match[0] for path in sources if (match := PICKLED.search(path.read_text("utf-8")))}
    assert found == {}
