"""GGUF files, read with the package gguf of llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader

from quant.container import ModelFolder
from quant.errors import FormatError
from quant.exporters.gguf_model import model_metadata
from quant.formats import dequantise
from quant.sources import QuantisedRows
from quant.sources.gguf.block_parts import home_parts
from quant.sources.gguf.names import gguf_name
from tests import tiers
from tests.quant.exporters.exporting import finished, imported_model, model_of, random_grid, run

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
HOMES = {
    "q4_0": "lin4",
    "q5_0": "lin8",
    "q8_0": "lin8",
    "q4_1": "min4",
    "q4_k": "k4",
    "q5_k": "k8",
    "iq4_nl": "iq4",
    "iq4_xs": "iq4k",
}
HALVES = {"q4_1": (0, 2), "q4_k": (0, 2), "q5_k": (0, 2)}
"""Offsets of the float16 values of a block; other types have one at 0."""


def random_blocks(kind: str, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Return random blocks of a type, (rows, blocks, bytes), with finite scales of both signs."""
    random = np.random.default_rng(seed)
    weights, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]
    blocks = random.integers(0, 256, (shape[0], shape[1] // weights, size), dtype=np.uint8)
    for offset in HALVES.get(kind, (0,)):
        scales = (random.uniform(-0.1, 0.1, blocks.shape[:2])).astype("<f2")
        blocks[..., offset : offset + 2] = scales[..., None].view(np.uint8)
    return blocks


def tensors_of(folder: Path) -> dict[str, Any]:
    """Return the tensors of all files of a folder by name."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.gguf")):
        for tensor in GGUFReader(path).tensors:
            assert tensor.name not in found
            found[tensor.name] = tensor
    return found


def values_of(tensor: Any) -> np.ndarray:
    """Return the values of a tensor as gguf reads them."""
    return np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type)).reshape(tensor.shape[::-1])


def metadata_of(path: Path) -> dict[str, Any]:
    return {field.name: field.contents() for field in GGUFReader(path).fields.values()}


@pytest.mark.parametrize("kind", HOMES)
@pytest.mark.parametrize("seed", range(tiers.count(5, 1)))
def test_imported_blocks_come_back_byte_for_byte(tmp_path: Path, kind: str, seed: int) -> None:
    blocks: dict[str, np.ndarray] = {}

    def choose(name: str, shape: tuple[int, int]) -> QuantisedRows | None:
        if not name.endswith("_proj.weight"):
            return None
        blocks[name] = random_blocks(kind, shape, seed=100 * seed + len(blocks))
        return QuantisedRows(HOMES[kind], 32, home_parts(kind, blocks[name]))

    model = imported_model(tmp_path, choose, **WIDE)
    errors = finished(run(model, tmp_path / "export", "gguf")).errors
    tensors = tensors_of(tmp_path / "export")
    for name, stored in blocks.items():
        tensor = tensors[str(gguf_name(name))]
        assert tensor.tensor_type.name == kind.upper()
        assert tensor.data.tobytes() == stored.tobytes()
        assert errors[name] == 0
        np.testing.assert_array_equal(values_of(tensor), dequantise(model.tensor(name)))


def check_values(model: ModelFolder, folder: Path, errors: Any, rtol: float) -> None:
    """Compare every tensor with the model, and its measured error with the true one."""
    tensors = tensors_of(folder)
    assert set(tensors) == {gguf_name(name) for name in model.names}
    for name in model.names:
        values, expected = values_of(tensors[str(gguf_name(name))]), dequantise(model.tensor(name))
        assert values.shape == expected.shape
        error = np.sqrt(np.square(values.astype(float) - expected).sum() / np.square(expected.astype(float)).sum())
        assert errors[name] == pytest.approx(error, rel=1e-4, abs=1e-9)
        np.testing.assert_allclose(values, expected, rtol=rtol, atol=1e-7)


@pytest.mark.parametrize(
    ("preset", "kinds"),
    [("q4", {"Q8_0"}), ("q8", {"Q8_0"}), ("lin4", {"Q4_1", "Q8_0"}), ("lin8", {"Q8_0"}), ("dense", {"BF16"})],
)
def test_values_of_every_preset(tmp_path: Path, preset: str, kinds: set[str]) -> None:
    model = model_of(tmp_path, preset=preset)
    errors = finished(run(model, tmp_path / "export", "gguf")).errors
    found = {tensor.tensor_type.name for tensor in tensors_of(tmp_path / "export").values() if len(tensor.shape) > 1}
    assert kinds <= found <= kinds | {"Q8_0"}
    if preset == "lin4":  # the minimums of Q4_1 are rounded to float16
        assert 0 < max(errors.values()) < 1e-3
    else:
        check_values(model, tmp_path / "export", errors, rtol=2**-11)
    if preset in ("lin8", "dense"):
        assert set(errors.values()) == {0}


@pytest.mark.parametrize("group_size", [64, 128])
@pytest.mark.parametrize(("bits", "kind"), [(4, "Q4_0"), (8, "Q8_0")])
def test_larger_groups_repeat_their_scales(tmp_path: Path, bits: int, kind: str, group_size: int) -> None:
    model = imported_model(tmp_path, lambda name, shape: random_grid(shape, bits, group_size, -1, len(name)), **WIDE)
    errors = finished(run(model, tmp_path / "export", "gguf")).errors
    assert {tensor.tensor_type.name for tensor in tensors_of(tmp_path / "export").values()} == {kind, "F32"}
    assert set(errors.values()) == {0}
    check_values(model, tmp_path / "export", errors, rtol=0)


@pytest.mark.parametrize(("zeros", "kind"), [(None, "F16"), (127, "Q8_0"), (128, "Q8_0"), (100, "F16")])
def test_zero_points_of_eight_bits(tmp_path: Path, zeros: int | None, kind: str) -> None:
    def choose(name: str, shape: tuple[int, int]) -> QuantisedRows:
        rows = random_grid(shape, 8, 32, zeros, len(name))
        codes = rows.parts["codes"]
        codes[codes == 255] = 254 if zeros == 127 else 255
        return rows

    model = imported_model(tmp_path, choose)
    errors = finished(run(model, tmp_path / "export", "gguf")).errors
    assert {tensor.tensor_type.name for tensor in tensors_of(tmp_path / "export").values()} == {kind, "F32"}
    check_values(model, tmp_path / "export", errors, rtol=2**-11)
    assert (max(errors.values()) == 0) == (kind == "Q8_0")


def test_minimums_of_zero_points(tmp_path: Path) -> None:
    model = imported_model(tmp_path, lambda name, shape: random_grid(shape, 4, 64, None, len(name)), **WIDE)
    errors = finished(run(model, tmp_path / "export", "gguf")).errors
    tensors = tensors_of(tmp_path / "export")
    for name in model.names:
        values, expected = values_of(tensors[str(gguf_name(name))]), dequantise(model.tensor(name))
        step = np.abs(expected).max()
        assert np.abs(values - expected).max() <= step * 2**-10
        assert errors[name] < 1e-3


@pytest.mark.parametrize(
    ("preset", "bits", "kinds"), [("dense", 4, {"Q4_1", "Q8_0"}), ("q4", 4, {"Q4_1", "Q8_0"}), ("dense", 8, {"Q8_0"})]
)
def test_bits_quantise_what_no_type_holds(tmp_path: Path, preset: str, bits: int, kinds: set[str]) -> None:
    model = model_of(tmp_path, preset=preset)
    errors = finished(run(model, tmp_path / "export", "gguf", bits=bits)).errors
    tensors = tensors_of(tmp_path / "export")
    assert {tensor.tensor_type.name for tensor in tensors.values()} == kinds | {"F32"}
    assert {tensors[name].tensor_type.name for name in ("token_embd.weight", "output.weight")} == {"Q8_0"}
    for name in model.names:
        values, expected = values_of(tensors[str(gguf_name(name))]), dequantise(model.tensor(name))
        error = np.sqrt(np.square(values.astype(float) - expected).sum() / np.square(expected.astype(float)).sum())
        assert errors[name] == pytest.approx(error, rel=1e-3, abs=1e-9)
        assert error < 0.12


def test_splits_hold_every_tensor_once(tmp_path: Path) -> None:
    model = model_of(tmp_path, preset="q8")
    run(model, tmp_path / "one", "gguf")
    run(model, tmp_path / "many", "gguf", shard_bytes=30_000)
    paths = sorted((tmp_path / "many").glob("*.gguf"))
    assert [path.name for path in paths] == [
        f"model-{n:05d}-of-{len(paths):05d}.gguf" for n in range(1, len(paths) + 1)
    ]
    assert len(paths) > 2
    one, many = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "many")
    assert {name: tensor.data.tobytes() for name, tensor in one.items()} == {
        name: tensor.data.tobytes() for name, tensor in many.items()
    }
    for number, path in enumerate(paths):
        metadata = metadata_of(path)
        assert (metadata["split.no"], metadata["split.count"]) == (number, len(paths))
        assert metadata["split.tensors.count"] == len(one)
        assert ("general.architecture" in metadata) == (number == 0)


def test_metadata_describes_the_model(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    model = model_of(tmp_path, preset="q8", config={"rope_scaling": yarn, "tie_word_embeddings": True})
    run(model, tmp_path / "export", "gguf")
    metadata = metadata_of(tmp_path / "export" / "model.gguf")
    expected = {
        "general.architecture": "qwen2",
        "general.type": "model",
        "general.name": "checkpoint",
        "general.alignment": 32,
        "general.quantization_version": 2,
        "general.file_type": 7,
        "qwen2.block_count": 2,
        "qwen2.context_length": 256,
        "qwen2.embedding_length": 64,
        "qwen2.feed_forward_length": 96,
        "qwen2.attention.head_count": 4,
        "qwen2.attention.head_count_kv": 2,
        "qwen2.attention.key_length": 16,
        "qwen2.attention.value_length": 16,
        "qwen2.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "qwen2.rope.freq_base": 10000.0,
        "qwen2.rope.scaling.type": "yarn",
        "qwen2.rope.scaling.factor": 4.0,
        "qwen2.rope.scaling.original_context_length": 64,
        "qwen2.rope.scaling.yarn_beta_fast": 32.0,
        "qwen2.rope.scaling.yarn_beta_slow": 1.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
    }
    assert {key: metadata.get(key) for key in expected} == expected
    assert len(metadata["tokenizer.ggml.tokens"]) == 320
    assert "output.weight" not in tensors_of(tmp_path / "export")


def test_another_attention_factor_becomes_a_ratio(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "attention_factor": 2.0, "original_max_position_embeddings": 64}
    metadata = model_metadata(model_of(tmp_path, preset="q8", config={"rope_scaling": yarn}), 7)
    assert metadata["qwen2.rope.scaling.attn_factor"] == pytest.approx(2 / (0.1 * np.log(4) + 1))


def test_scales_of_more_than_six_bits_are_refused(tmp_path: Path) -> None:
    def choose(name: str, shape: tuple[int, int]) -> QuantisedRows | None:
        if not name.endswith("o_proj.weight"):
            return None
        parts = home_parts("q4_k", random_blocks("q4_k", shape, 1))
        parts["scales"][0, 0] = 64
        return QuantisedRows("k4", 32, parts)

    model = imported_model(tmp_path, choose, **WIDE)
    with pytest.raises(FormatError, match=r"o_proj\.weight cannot be exported: a scale or minimum exceeds 6 bits"):
        run(model, tmp_path / "export", "gguf")


def test_qwen3_has_norms_of_heads_and_its_own_head_size(tmp_path: Path) -> None:
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32, "attention_bias": False}
    model = model_of(tmp_path, preset="q8", config=config)
    errors = finished(run(model, tmp_path / "export", "gguf")).errors
    check_values(model, tmp_path / "export", errors, rtol=2**-11)
    metadata = metadata_of(tmp_path / "export" / "model.gguf")
    assert (metadata["general.architecture"], metadata["qwen3.attention.key_length"]) == ("qwen3", 32)
    assert tensors_of(tmp_path / "export")["blk.1.attn_q_norm.weight"].tensor_type.name == "F32"
