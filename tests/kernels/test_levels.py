"""SIMD levels: chosen, forced, refused, compiled to the right instructions, and equal in their results."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qwchat.errors import UsageError
from qwchat.kernels import jit, level
from qwchat.kernels.matmul import run_tile
from tests.kernels.packed import KINDS, random_packed
from tests.kernels.test_matmul import multiply

ROOT = Path(__file__).resolve().parents[2]
DOT = {"avx512vnni": r"vpdpbusd\s.*zmm", "avx2": r"vpmaddwd\s.*ymm", "portable": r"mull|pmul"}

PRINT_DIGEST = "from tests.kernels.test_levels import digest; print(digest())"


def digest() -> str:
    """A hash of the results of every format for 1 to 15 tokens, to the last bit."""
    rng = np.random.default_rng(11)
    total = hashlib.sha256()
    for kind in KINDS:
        packed = random_packed(kind, 48, 256, rng)
        total.update(multiply(packed, rng.standard_normal((15, 256)).astype(np.float32)).tobytes())
    return total.hexdigest()


@pytest.mark.parametrize("name", level.supported_levels())
def test_levels_agree_to_the_last_bit(name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PRINT_DIGEST],
        cwd=ROOT,
        env=os.environ | {"QWCHAT_SIMD": name},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == digest()


def test_the_dot_product_is_the_level_s_own_instruction() -> None:
    assert run_tile.symbol == "qwchat_run_tile"
    code = jit.machine_code("qwchat_run_tile")
    assert len(re.findall(DOT[level.current_level()], code)) >= 4 * 15 * 8
    assert "fmaf" not in code


@pytest.mark.parametrize(("value", "message"), [("sse9", "is no SIMD level"), ("avx2", "lacks")])
def test_a_level_that_cannot_run_is_refused(value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWCHAT_SIMD", value)
    monkeypatch.setattr(level, "supported_levels", lambda: ("portable",))
    with pytest.raises(UsageError, match=message):
        level.current_level.__wrapped__()


def test_the_cache_is_keyed_by_level(monkeypatch: pytest.MonkeyPatch) -> None:
    here = jit.cache_folder()
    other = next(name for name in level.LEVELS if name != level.current_level())
    monkeypatch.setattr(jit, "current_level", lambda: other)
    assert jit.cache_folder.__wrapped__() != here
