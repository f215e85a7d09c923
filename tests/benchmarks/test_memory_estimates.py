"""Estimates against the resident memory of a process with a full context window."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.measurements import Conditions, Measurement
from benchmarks.memory_estimates import TOLERANCE, Cell, as_text, measure, measurements
from benchmarks.zero_models import make_zero_model
from quant.container import open_model
from qwchat.model.gpu_memory import stored_tensors
from qwchat.models_folder import embedded_checkpoint
from qwchat.store.memory_estimate import planned_tensors

SHAPE = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
}


@pytest.mark.parametrize("preset", ["q4", "lin8"])
def test_a_model_of_zeros_has_the_sizes_of_a_conversion(tmp_path: Path, preset: str) -> None:
    values = SHAPE | {"num_hidden_layers": 2}
    folder = open_model(make_zero_model(values, preset, embedded_checkpoint(), tmp_path / "model"))
    assert stored_tensors(folder.config, folder.tensor) == planned_tensors(folder.config, preset)
    assert folder.preset == preset
    assert not folder.tensor("model.layers.1.mlp.down_proj.weight").parts["codes"].any()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Rss is read from /proc")
def test_the_estimate_is_within_three_percent(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(SHAPE))
    tokenizer = embedded_checkpoint()
    cells = list(measure(str(config), "q4", (4096, 16384), 2, tokenizer, tmp_path, tmp_path))
    assert [(cell.context, cell.kv) for cell in cells] == [
        (4096, "f32"), (4096, "q8"), (16384, "f32"), (16384, "q8"),
    ]  # fmt: skip
    assert all(abs(cell.deviation) <= TOLERANCE for cell in cells), as_text(cells)
    assert not (tmp_path / "zeros").exists()


def test_cells_as_text_and_as_measurements() -> None:
    cell = Cell("m", "q4", 4096, "q8", 1_000_000_000, 1_012_000_000)
    assert as_text([cell]).splitlines()[1].split() == (
        ["m", "q4", "4,096", "q8", "1,000.0", "MB", "1,012.0", "MB", "+1.20", "%"]
    )
    conditions = Conditions("memory_estimates", "2026-11-28", "any", None, 2, None)
    (measurement,) = measurements(conditions, [cell])
    assert Measurement.of_line(measurement.line()) == measurement
    assert measurement.limit is not None
    assert measurement.limit.value == 1_012_000_000
