"""The GPU benchmark on a fake driver, whose kernels are NumPy twins: every section runs, and its figures add up."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu as benchmark
from benchmarks import random_model
from benchmarks.gpu_timing import launches_by_stage, weights_by_stage
from benchmarks.random_model import RandomModel, shape_config
from quant.formats import dequantise
from qwchat.cuda import manifest
from qwchat.cuda.device import find_gpus
from qwchat.model.gpu_memory import stored_tensors
from tests.cuda.decoders import open_decoder
from tests.cuda.fake_driver import FakeDriver
from tests.cuda.twin_kernels import twin_executor

SMALL = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 301,
    "tie_word_embeddings": False,
}


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver(execute=twin_executor(manifest.kernels()), memory=1 << 30)


@pytest.mark.slow
def test_every_section_has_its_figures(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(random_model, "SHAPES", {"0.5B": SMALL})
    monkeypatch.setattr(benchmark, "SHAPES", {"0.5B": SMALL})
    monkeypatch.setattr(benchmark, "DEPTHS", (0, 40))
    monkeypatch.setattr(benchmark, "_CONTEXT", 64)
    monkeypatch.setattr(benchmark, "_TINY", {})
    monkeypatch.setattr(benchmark, "PROMPT_TOKENS", 20)
    monkeypatch.setattr(benchmark, "STEPS", 2)
    monkeypatch.setattr("benchmarks.gpu_timing.COPY_BYTES", 1 << 20)
    options = argparse.Namespace(
        sections=("copy", "stages", "nodes", "decode", "prefill", "transformers"), shapes=("0.5B",), presets=("q4",)
    )
    figures = benchmark.Benchmark(driver, find_gpus(driver)[0], options).run()
    assert set(figures) == {"date", "gpu", "seconds", *options.sections}
    assert figures["copy"]["bytes_per_second"] > 0
    stages = [row["stage"] for row in figures["stages"] if row["tokens"] == 1]
    assert stages == ["qkv", "attention", "o_proj", "gate_up", "down_proj", "head"]
    assert {(row["kv"], row["depth"]) for row in figures["decode"]} == {
        (kv, depth) for kv in ("f16", "q8") for depth in (0, 40)
    }
    assert all(row["allocated"] == row["estimate"] for row in figures["decode"])
    assert figures["prefill"][0]["tokens_per_second"] > 0
    assert driver.leaked == []
    assert not driver.retained.total()
    assert "0.5B q4" in capsys.readouterr().out


def test_stages_read_all_weights_but_norms_biases_and_the_embedding(driver: FakeDriver) -> None:
    model = RandomModel(random_model.parse_config(random_model._COMMON | SMALL), "q4")
    decoder = open_decoder(driver, model, context=64, kind="f16")
    launches = launches_by_stage(decoder, decoder.make_cache(), 1)
    weights = weights_by_stage(model, 64, "f16")
    assert set(launches) == set(weights)
    read = sum(
        dtype.itemsize * math.prod(shape)
        for name, tensor in stored_tensors(model.config, model.tensor).items()
        for dtype, shape in tensor.on_device.layout.values()
        if name.endswith("proj.weight") or name == "lm_head.weight"
    )
    assert read <= sum(weights.values()) < 1.1 * read
    decoder.close()


@pytest.mark.parametrize("preset", ["q4", "q8", "q4-small"])
def test_random_weights_keep_activations_near_one(preset: str) -> None:
    model = RandomModel(shape_config("0.5B"), preset)
    for name in ("model.layers.3.self_attn.q_proj.weight", "model.layers.3.mlp.down_proj.weight"):
        packed = model.tensor(name)
        values = dequantise(packed)
        assert values.shape == packed.shape
        assert 0.3 < np.linalg.norm(values, axis=1).mean() < 0.8


def test_the_tests_of_kernels_exist() -> None:
    root = Path(__file__).parents[2]
    assert [name for name in benchmark.KERNEL_TESTS if not (root / name).is_file()] == []
