"""The arithmetic of the comparison with llama.cpp, and the comparison itself where llama-cpp-python is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.llama_parity import divergences, log_softmax

ROOT = Path(__file__).resolve().parent.parent.parent


def test_divergences_are_those_of_the_definition() -> None:
    first, second = np.log([[0.5, 0.5], [0.25, 0.75]]), np.log([[0.9, 0.1], [0.25, 0.75]])
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    np.testing.assert_allclose(divergences([first, second], [second + 3.0, second]), [expected, 0, 0, 0], atol=1e-12)


def test_large_logits_keep_their_distribution() -> None:
    logits = np.array([[1e4, 1e4 - np.log(3.0)]], np.float32)
    np.testing.assert_allclose(np.exp(log_softmax(logits)), [[0.75, 0.25]], rtol=1e-3)


@pytest.mark.slow
def test_a_file_of_llama_cpp_has_its_logits(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    command = [sys.executable, "-m", "benchmarks.llama_parity", "files", "--work", str(tmp_path)]
    ran = subprocess.run([*command, "--kinds", "Q8_0", "Q4_0"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    results = json.loads(ran.stdout.splitlines()[-1])["results"]
    assert [each["weights"] < 1e-4 for each in results] == [True, True]
