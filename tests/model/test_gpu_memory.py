"""Arrays of a decoder on a GPU: every tensor once, every buffer of the kernels, and how many layers fit."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from quant.container import open_model
from quant.families import expected_tensors
from quant.model_config import ModelConfig
from qwchat.model.gpu_memory import (
    ALIGNMENT,
    CONTEXT_BYTES,
    DevicePart,
    PartSizes,
    TensorLayout,
    choose_kv_kind,
    gpu_memory,
    stored_tensors,
)
from qwchat.store.catalogue import find_entry
from qwchat.store.memory_estimate import planned_tensors
from tests.quant.checkpoints import make_checkpoint
from tests.quant.converting import run as convert


def config_of(name: str) -> ModelConfig:
    entry = find_entry(name)
    assert entry is not None
    return entry.config


@pytest.mark.parametrize("name", ["qwen2.5:0.5b", "qwen2.5:7b", "qwen3:4b"])
@pytest.mark.parametrize("preset", ["q4", "q8", "lin4", "dense"])
def test_every_tensor_is_uploaded_once(name: str, preset: str) -> None:
    config = config_of(name)
    tensors = planned_tensors(config, preset)
    memory = gpu_memory(config, tensors, 4096, "q8", DevicePart.whole(config))
    uploaded = [source for tensor in memory.weight_arrays for source in tensor.sources]
    assert sorted(uploaded) == sorted(expected_tensors(config))
    stored = sum(
        dtype.itemsize * math.prod(shape)
        for tensor in tensors.values()
        for dtype, shape in tensor.on_device.layout.values()
    )
    arrays = [array for tensor in memory.weight_arrays for array in tensor.parts.values()]
    # Nothing but the padding of each array is added.
    assert stored <= memory.weights < stored + ALIGNMENT * len(arrays)
    assert all(array.allocated % ALIGNMENT == 0 for array in arrays)


def test_neighbours_that_are_stored_alike_are_stacked() -> None:
    config = config_of("qwen2.5:7b")
    value = "model.layers.4.self_attn.v_proj.weight"
    tensors = {**planned_tensors(config, "q4"), value: planned_tensors(config, "q8")[value]}
    memory = gpu_memory(config, tensors, 64, "f16", DevicePart.whole(config))
    named = {tensor.name: tensor for tensor in memory.weight_arrays}
    middle = named["model.layers.10.qkv"]
    assert middle.sources == tuple(f"model.layers.10.self_attn.{name}_proj.weight" for name in "qkv")
    assert middle.parts["codes"].shape == ((3584 + 512 + 512) // 16, 3584 // 8, 16, 4)
    assert named["model.layers.10.gate_up"].parts["scales"].shape == (2 * 18944 // 16, 3584 // 32, 16)
    assert named["model.layers.4.self_attn.q_proj.weight"].sources[1] == "model.layers.4.self_attn.k_proj.weight"
    assert named[value].parts["codes"].shape == (32, 3584 // 4, 16, 4)
    # The first layers have 6 bits in attention: 8 on the card.
    assert named["model.layers.0.qkv"].parts["codes"].shape == ((3584 + 512 + 512) // 16, 3584 // 4, 16, 4)
    assert named["model.layers.0.qkv.bias"].parts["values"].shape == (3584 + 512 + 512,)


def test_q6_takes_the_bytes_of_q8_on_the_card() -> None:
    config = config_of("qwen2.5:7b")
    part = DevicePart.whole(config)
    six, eight = (gpu_memory(config, planned_tensors(config, preset), 64, "f16", part) for preset in ("q6", "q8"))
    assert six == eight
    # A matrix in q6 is stacked with a neighbour in q8.
    tensors = {
        **planned_tensors(config, "q8"),
        **{name: tensor for name, tensor in planned_tensors(config, "q6").items() if name.endswith("v_proj.weight")},
    }
    assert gpu_memory(config, tensors, 64, "f16", part) == eight


def test_cache_of_both_kinds() -> None:
    config = config_of("qwen2.5:7b")
    tensors = planned_tensors(config, "q4")
    elements = 2 * 28 * 4 * 128 * 4096
    part = DevicePart.whole(config)
    assert gpu_memory(config, tensors, 4090, "f16", part).cache == 2 * elements
    assert gpu_memory(config, tensors, 4090, "q8", part).cache == elements + elements // 32 * 2
    assert gpu_memory(config, tensors, 4097, "f16", part).cache == 2 * elements * 65 // 64


@pytest.mark.parametrize(
    ("requested", "context", "kind"),
    [("auto", 2340, "f16"), ("auto", 2341, "q8"), ("f32", 32768, "f16"), ("q8", 64, "q8")],
)
def test_kind_of_the_cache(requested: str, context: int, kind: str) -> None:
    # 7B takes 57,344 bytes per position in 16 bits, and 128 MiB are exact.
    assert choose_kv_kind(requested, config_of("qwen2.5:7b"), context) == kind


@pytest.mark.parametrize("name", ["qwen2.5:0.5b", "qwen3:4b", "qwen2.5:14b"])
def test_layers_that_fit(name: str) -> None:
    config = config_of(name)
    tensors = planned_tensors(config, "q4")
    sizes = PartSizes(config, tensors, 4096, "q8")
    for count in (0, 1, config.num_layers // 2, config.num_layers):
        total = gpu_memory(config, tensors, 4096, "q8", DevicePart.last(config, count)).total
        assert sizes.totals[count] == total
        most = count if count < config.num_layers or config.tie_word_embeddings else count - 1
        assert len(sizes.largest(total).layers) == most
        assert len(sizes.largest(total - 1).layers) == max(0, count - 1)
    assert sizes.largest(sizes.whole.total) == DevicePart.whole(config)
    assert not sizes.largest(CONTEXT_BYTES).layers
    # An embedding that is not the head as well is on the card only with the whole model.
    assert (sizes.whole.total > sizes.totals[-1]) == (not config.tie_word_embeddings)
    assert sizes.largest(sizes.totals[-2]) == DevicePart.last(config, config.num_layers - 1)


def test_stored_tensors_of_a_folder(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    convert(source, tmp_path / "model", preset="q4")
    folder = open_model(tmp_path / "model")
    assert stored_tensors(folder.config, folder.tensor) == planned_tensors(folder.config, "q4")


def test_a_stacked_matrix_has_one_kind() -> None:
    shape = {"codes": (np.dtype(np.uint8), (2, 4, 16, 4))}
    assert TensorLayout("lin4", 32, shape).kind != TensorLayout("lin4", 64, shape).kind
    assert TensorLayout("lin4", 32, shape).kind != TensorLayout("lin4", 32, {**shape, "zeros": shape["codes"]}).kind
