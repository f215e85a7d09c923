"""Layers as records: they have what the model's family has, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quant.families import FAMILIES
from quant.families.qwen2 import QWEN2
from qwchat.cpu.layer_records import LAYER
from qwchat.cpu.weights import Weights
from tests.cpu.random_models import config, random_folder

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_only_biases_of_the_family_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_biases(model: object) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, shape in QWEN2.tensor_shapes(model).items() if not name.endswith("bias")}  # type: ignore[arg-type]

    monkeypatch.setitem(FAMILIES, "plain", replace(QWEN2, model_type="plain", tensor_shapes=without_biases))
    for model_type, biased in (("qwen2", {"q_proj", "k_proj", "v_proj"}), ("plain", set())):
        folder = random_folder(config(model_type=model_type, num_hidden_layers=1))
        weights, record = Weights(folder), np.zeros((), LAYER)
        weights.layer(0, record)
        assert {name for name in PROJECTIONS if record[name]["bias"]} == biased
        assert all(record[name]["codes"] for name in PROJECTIONS)
        assert weights.key_bias(0).any() == bool(biased)
        assert weights.key_bias(0).shape == (folder.config.num_kv_heads * folder.config.head_dim,)
