"""Where compiled code is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILE_ONE = """
from qwchat.kernels import jit
@jit.kernel
def double(x):
    return 2 * x
print(jit._writable_folder(), jit.is_compiled())
assert double(21) == 42
jit.mark_compiled()
print(jit.is_compiled())
"""


def run(cache: Path, program: Path, root: Path = ROOT) -> list[str]:
    environment = os.environ | {"QWCHAT_CACHE": str(cache), "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(COMPILE_ONE)
    return path


def test_code_is_kept_under_a_name_of_its_own(tmp_path: Path, program: Path) -> None:
    folder, before, after = run(tmp_path / "cache", program)
    assert Path(folder).parent == tmp_path / "cache"
    assert (before, after) == ("False", "True")
    assert list(Path(folder).rglob("*.nbc"))
    assert run(tmp_path / "cache", program) == [folder, "True", "True"]


def test_a_cache_that_cannot_be_made_is_replaced_by_a_private_folder(tmp_path: Path, program: Path) -> None:
    (tmp_path / "file").write_text("no folder can be made below this")
    folder, before, _ = run(tmp_path / "file" / "cache", program)
    assert "qwchat-kernels-" in folder
    assert before == "False"
    assert not Path(folder).exists()


def test_two_installations_do_not_take_each_other_for_compiled(tmp_path: Path, program: Path) -> None:
    copy = tmp_path / "copy"
    for package in ("qwchat", "quant"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__", "embedded"))
    folders = {run(tmp_path / "cache", program, root)[0] for root in (ROOT, copy)}
    assert len(folders) == 2
