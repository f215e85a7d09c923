"""The NumPy reference, compared with transformers in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from quant.families import read_config
from qwchat.model.reference import Reference
from tests.oracle.reference import CASES, Case, distance, reference_logits, torch

SHORT = [case for case in CASES if case.length <= 130][::2]


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_the_reference_equals_transformers(case: Case, tmp_path: Path) -> None:
    source, ids = case.write(tmp_path), case.token_ids()
    tensors: dict[str, np.ndarray] = {}
    for file in source.glob("*.safetensors"):
        tensors |= load_file(file)
    page = Reference(read_config(source), lambda name: tensors[name].astype(np.float64))
    # RoPE's tables remain float32, and key biases of a large norm make their error visible.
    bound = 1e-6 if case.k_bias_norm is None else 2e-5
    assert distance(page.logits(ids), reference_logits(source, ids, torch.float64)) <= bound
