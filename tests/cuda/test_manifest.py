"""The committed PTX belongs to the sources; comparing the text itself needs the compiler (`cuda-dev`)."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from qwchat.cuda import manifest
from qwchat.cuda.kernels import sources
from qwchat.cuda.kernels.unit import TARGETS

MANIFESTS = sorted((manifest.PTX_FOLDER / "manifest").glob("*.json"))


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_a_unit_was_compiled_after_the_last_change(file: Path) -> None:
    record = json.loads(file.read_text("utf-8"))
    again = f"run python -m qwchat.cuda.kernels {file.stem}"
    assert record["sources"] == sources.digest(record["module"]), again


def test_every_unit_has_ptx_for_every_target() -> None:
    assert manifest.TARGETS == TARGETS
    wanted = {file.stem for file in MANIFESTS}
    for target in TARGETS:
        assert {file.stem for file in (manifest.PTX_FOLDER / f"sm_{target}").glob("*.ptx")} == wanted


def test_records_name_the_kernels_of_the_ptx() -> None:
    for record in manifest.kernels().values():
        for target in TARGETS:
            text = manifest.ptx_text(record.unit, target)
            assert f".entry {record.name}(" in text
            assert f"{record.name}_param_{len(record.parameters) - 1}\n" in text
            assert f".maxntid {record.threads}, 1, 1" in text


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="needs the extra cuda-dev")
def test_the_compiler_returns_the_committed_ptx() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "qwchat.cuda.kernels", "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
