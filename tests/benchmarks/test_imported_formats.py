"""The benchmark of imported formats, on a small model."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import imported_formats
from benchmarks.imported_formats import FORMATS, ResidentModel, as_measurements, as_table, measure
from benchmarks.measurements import Conditions
from quant.formats import check_packed, dequantise
from tests.cpu.random_models import config

SMALL = config(hidden_size=256, intermediate_size=256, num_hidden_layers=1)


@pytest.mark.parametrize("name", ["q4", "q8", *FORMATS])
def test_random_weights_have_the_size_of_trained_ones(name: str) -> None:
    packed = ResidentModel(SMALL, name).tensor("model.layers.0.mlp.up_proj.weight")
    check_packed(packed)
    lengths = np.linalg.norm(dequantise(packed), axis=1)
    assert 0.05 < np.median(lengths) < 5


def test_each_format_is_compared_with_the_reference_of_its_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imported_formats, "PROMPT", 16)
    monkeypatch.setattr(imported_formats, "REPLY", 2)
    subjects = measure(SMALL, ["k4", "k8"], rounds=2)
    assert [subject.name for subject in subjects] == ["q4", "q8", "k4", "k8"]
    for subject in subjects[2:]:
        reference = subjects[0 if subject.name == "k4" else 1]
        for cell, ratios in subject.ratios.items():
            pairs = zip(*[iter(reference.rates[cell])] * 2, strict=True)
            assert ratios == [
                2 * rate / (before + after) for rate, (before, after) in zip(subject.rates[cell], pairs, strict=True)
            ]
    table = as_table(subjects).splitlines()
    assert [line.split()[0] for line in table] == ["format", "q4", "q8", "k4", "k8"]
    found = as_measurements(subjects, Conditions("imported_formats", "2000-01-01", "machine", "avx2", 1, None))
    assert [(each.setting, each.cell) for each in found] == [
        (name, cell) for name in ("k4", "k8") for cell in ("decode", "prefill")
    ]
