"""Random checkpoints have the files of Hugging Face, except for the values of the weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from benchmarks.make_checkpoint import make_checkpoint, plan_shards, to_bfloat16
from quant.families import expected_tensors, parse_config, read_config

SMALL = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def names_in(file: Path) -> set[str]:
    with safe_open(file, framework="numpy") as opened:
        return set(opened.keys())


def test_one_file_below_the_shard_size(tmp_path: Path) -> None:
    folder = make_checkpoint(SMALL, tmp_path / "one")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert names_in(folder / "model.safetensors") == set(expected_tensors(parse_config(SMALL)))


def test_shards_and_index_agree(tmp_path: Path) -> None:
    folder = make_checkpoint(SMALL, tmp_path / "many", shard_bytes=60_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    for file in set(index["weight_map"].values()):
        assert names_in(folder / file) == {name for name, place in index["weight_map"].items() if place == file}
    parameters = sum(math.prod(shape) for shape in expected_tensors(parse_config(SMALL)).values())
    assert index["metadata"]["total_size"] == 2 * parameters


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again = (make_checkpoint(SMALL, tmp_path / name, seed=3) for name in ("first", "again"))
    other = make_checkpoint(SMALL, tmp_path / "other", seed=4)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_shards_of_7b_are_those_of_the_published_index(shared_qwen2: Path) -> None:
    folder = shared_qwen2 / "7b-instruct"
    shapes = expected_tensors(read_config(folder))
    published = json.loads((folder / "model.safetensors.index.json").read_text())
    assert {name: file for file, names in plan_shards(shapes).items() for name in names} == published["weight_map"]
    assert 2 * sum(math.prod(shape) for shape in shapes.values()) == published["metadata"]["total_size"]


@pytest.mark.parametrize(
    ("value", "bits"), [(1.0, 0x3F80), (-0.02, 0xBCA4), (1.00390625, 0x3F80), (1.01171875, 0x3F82)]
)
def test_bfloat16_rounds_ties_to_even(value: float, bits: int) -> None:
    assert to_bfloat16(np.array([value], np.float32))[0] == bits
