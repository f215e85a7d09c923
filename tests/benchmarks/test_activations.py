"""The benchmark of activations of 16 bits, on a small model."""

from __future__ import annotations

import pytest

from benchmarks import activations
from benchmarks.activations import as_measurements, as_table, measure
from benchmarks.measurements import Conditions

SMALL = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 301,
}


def test_both_numbers_of_bits_are_measured_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(activations.SHAPES, "small", SMALL)
    monkeypatch.setattr(activations, "PROMPT", 16)
    monkeypatch.setattr(activations, "REPLY", 2)
    pair = measure("small", "q8", rounds=3, threads=1)
    assert set(pair.rates) == {(cell, bits) for cell in ("decode", "prefill") for bits in (8, 16)}
    for cell in ("decode", "prefill"):
        assert pair.ratios(cell) == [
            slow / fast for fast, slow in zip(pair.rates[cell, 8], pair.rates[cell, 16], strict=True)
        ]
        assert pair.ratio(cell) == sorted(pair.ratios(cell))[1]
    assert as_table([pair]).splitlines()[1].split()[:2] == ["small", "q8"]
    found = as_measurements([pair], Conditions("activations", "2000-01-01", "machine", "avx2", 1, None))
    assert [(each.model, each.cell) for each in found] == [("qwen2-small", "decode"), ("qwen2-small", "prefill")]
