"""compressed-tensors checkpoints, compared with an independent reading of the layout."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.container import ModelFolder
from quant.errors import ArgumentError
from quant.families import expected_tensors
from quant.formats import dequantise, find_format
from quant.sources import QuantisedRows
from quant.sources.gguf.block_parts import home_parts
from tests.quant.exporters.exporting import finished, imported_model, model_of, random_grid, read_safetensors, run
from tests.quant.sources.gguf.models import SIZES, TYPES, random_blocks
from tests.tiers import count

WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}


def unpack(words: np.ndarray, bits: int, length: int) -> np.ndarray:
    """Return fields of `bits` along the last axis of I32 words, lowest bits first."""
    fields = [(words.view(np.uint32) >> shift) & ((1 << bits) - 1) for shift in range(0, 32, bits)]
    return np.stack(fields, axis=-1).reshape(*words.shape[:-1], -1)[..., :length]


def weight_arguments(config: dict[str, Any], module: str) -> dict[str, Any] | None:
    """Return the arguments of a Linear module as engines look them up: ignore first, then the targets."""
    quantisation = config["quantization_config"]
    if module in quantisation["ignore"]:
        return None
    found = [
        group["weights"]
        for group in quantisation["config_groups"].values()
        for target in group["targets"]
        if target == "Linear" or (target.startswith("re:") and re.match(target[3:], module))
    ]
    assert len(found) == 1, module
    arguments: dict[str, Any] = found[0]
    return arguments


def decoded(folder: Path, module: str, arguments: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return codes (N, K), scales (N, G) as stored and zero points (N, G) of a module."""
    tensors, bits = read_safetensors(folder), arguments["num_bits"]
    rows, columns = tensors[f"{module}.weight_shape"].tolist()
    codes = unpack(tensors[f"{module}.weight_packed"], bits, columns)
    scales = tensors[f"{module}.weight_scale"]
    assert codes.shape == (rows, columns)
    assert scales.shape == (rows, columns // arguments["group_size"])
    if arguments["symmetric"]:
        assert f"{module}.weight_zero_point" not in tensors
        return codes, scales, np.full(scales.shape, 1 << (bits - 1))
    packed = tensors[f"{module}.weight_zero_point"]
    assert packed.shape == (-(-rows * bits // 32), scales.shape[1])
    return codes, scales, unpack(np.ascontiguousarray(packed.T), bits, rows).T


def linear_modules(model: ModelFolder) -> list[str]:
    return [name.removesuffix(".weight") for name in model.names if name.endswith("_proj.weight")]


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("zeros", [None, "middle", -1])
def test_linear_grids_are_exported_code_for_code(
    tmp_path: Path, bits: int, group_size: int, zeros: int | str | None
) -> None:
    middle = 1 << (bits - 1)
    point = middle if zeros == "middle" else zeros
    assert point is None or isinstance(point, int)
    grids: dict[str, QuantisedRows] = {}

    def choose(name: str, shape: tuple[int, int]) -> QuantisedRows | None:
        if not name.endswith("_proj.weight"):
            return None
        grids[name] = random_grid(shape, bits, group_size, point, seed=len(grids))
        return grids[name]

    model = imported_model(tmp_path, choose, **WIDE)
    errors = finished(run(model, tmp_path / "export", "compressed-tensors")).errors
    config = config_of(tmp_path / "export")
    assert len(grids) == 14
    for name, rows in grids.items():
        module = name.removesuffix(".weight")
        arguments = weight_arguments(config, module)
        assert arguments is not None
        codes, scales, points = decoded(tmp_path / "export", module, arguments)
        assert (arguments["num_bits"], arguments["group_size"]) == (bits, group_size)
        assert arguments["symmetric"] == (zeros is not None)
        np.testing.assert_array_equal(codes, rows.parts["codes"])
        assert scales.tobytes() == rows.parts["scales"].tobytes()
        np.testing.assert_array_equal(points, rows.parts.get("zeros", np.full(scales.shape, middle)))
        assert errors[name] == 0


@pytest.mark.parametrize("seed", range(count(30, 4)))
def test_mixed_models_keep_their_values_and_joined_matrices_agree(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    grids: dict[str, QuantisedRows] = {}

    def choose(name: str, shape: tuple[int, int]) -> QuantisedRows | None:
        if not name.endswith("_proj.weight"):
            return None
        bits, group_size = int(random.choice([4, 8])), int(random.choice([32, 64]))
        point = random.choice([-1, 1 << (bits - 1), 3])
        if shape[1] % group_size:
            group_size = 32
        grids[name] = random_grid(shape, bits, group_size, int(point), seed=len(grids))
        return grids[name]

    model = imported_model(tmp_path, choose)
    errors = finished(run(model, tmp_path / "export", "compressed-tensors", shard_bytes=20_000)).errors
    config = config_of(tmp_path / "export")
    for module in linear_modules(model):
        arguments = weight_arguments(config, module)
        assert arguments is not None
        codes, scales, points = decoded(tmp_path / "export", module, arguments)
        size = arguments["group_size"]
        values = (codes.astype(float) - np.repeat(points, size, axis=1)) * np.repeat(scales.astype(float), size, axis=1)
        np.testing.assert_array_equal(values, grids[f"{module}.weight"].dequantise())
        assert errors[f"{module}.weight"] == 0
        layer, _, part = module.rpartition(".")
        joined = {"q_proj": ("k_proj", "v_proj"), "gate_proj": ("up_proj",)}.get(part, ())
        assert all(weight_arguments(config, f"{layer}.{other}") == arguments for other in joined)


@pytest.mark.parametrize("preset", ["q4", "q8"])
def test_codebook_formats_keep_their_levels_in_eight_bits(tmp_path: Path, preset: str) -> None:
    model = model_of(tmp_path, preset=preset)
    errors = finished(run(model, tmp_path / "export", "compressed-tensors")).errors
    config = config_of(tmp_path / "export")
    for module in linear_modules(model):
        arguments = weight_arguments(config, module)
        assert arguments is not None
        assert (arguments["num_bits"], arguments["group_size"], arguments["symmetric"]) == (8, 32, True)
        codes, scales, points = decoded(tmp_path / "export", module, arguments)
        expected = dequantise(model.tensor(f"{module}.weight"))
        values = (codes.astype(float) - np.repeat(points, 32, axis=1)) * np.repeat(scales.astype(float), 32, axis=1)
        # Only the scales are rounded, to 11 bits.
        np.testing.assert_allclose(values, expected, rtol=2**-11, atol=1e-7)
        error = np.sqrt(np.square(values - expected).sum() / np.square(expected.astype(float)).sum())
        assert errors[f"{module}.weight"] == pytest.approx(error, rel=1e-4)
        assert error < 2**-11


def test_everything_else_is_stored_in_the_type_of_the_scales(tmp_path: Path) -> None:
    model = model_of(tmp_path, preset="lin4")
    run(model, tmp_path / "export", "compressed-tensors")
    tensors, config = read_safetensors(tmp_path / "export"), config_of(tmp_path / "export")
    assert config["torch_dtype"] == "float16"
    packed = {f"{module}.weight" for module in linear_modules(model)}
    for name in expected_tensors(model.config):
        if name in packed:
            assert name not in tensors
        else:
            expected = dequantise(model.tensor(name)).astype(np.float16)
            assert tensors[name].tobytes() == expected.tobytes()
    quantisation = config["quantization_config"]
    assert quantisation["ignore"] == ["lm_head"]
    assert {key: quantisation[key] for key in ("quant_method", "format", "quantization_status")} == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
    }
    (group,) = quantisation["config_groups"].values()
    assert group == {
        "targets": ["Linear"],
        "weights": {
            "num_bits": 4,
            "type": "int",
            "symmetric": False,
            "strategy": "group",
            "group_size": 32,
            "dynamic": False,
        },
        "input_activations": None,
        "output_activations": None,
    }


def test_bfloat16_scales_are_measured(tmp_path: Path) -> None:
    model = model_of(tmp_path, preset="lin8")
    errors = finished(run(model, tmp_path / "export", "compressed-tensors", dtype="bf16")).errors
    name = "model.layers.0.mlp.up_proj.weight"
    assert 1e-4 < errors[name] < 2**-8
    stored = read_safetensors(tmp_path / "export")[f"{name}_scale"]
    fmt = find_format("lin8")
    expected = fmt.scales(model.tensor(name)).astype(np.float32)  # type: ignore[attr-defined]
    np.testing.assert_allclose((stored.astype(np.uint32) << 16).view(np.float32), expected, rtol=2**-8)
    assert config_of(tmp_path / "export")["torch_dtype"] == "bfloat16"
    with pytest.raises(ArgumentError, match="has scales of type f16 or bf16, not f32"):
        run(model, tmp_path / "other", "compressed-tensors", dtype="f32")


@pytest.mark.parametrize(("preset", "bits", "most"), [("dense", 4, 0.12), ("dense", 8, 0.008), ("q4", 4, 0.12)])
def test_bits_quantise_what_no_grid_holds(tmp_path: Path, preset: str, bits: int, most: float) -> None:
    model = model_of(tmp_path, preset=preset)
    errors = finished(run(model, tmp_path / "export", "compressed-tensors", bits=bits)).errors
    config = config_of(tmp_path / "export")
    for module in linear_modules(model):
        arguments = weight_arguments(config, module)
        assert arguments is not None
        assert (arguments["num_bits"], arguments["symmetric"]) == (bits, bits == 8)
        codes, scales, points = decoded(tmp_path / "export", module, arguments)
        expected = dequantise(model.tensor(f"{module}.weight"))
        values = (codes.astype(float) - np.repeat(points, 32, axis=1)) * np.repeat(scales.astype(float), 32, axis=1)
        error = np.sqrt(np.square(values - expected).sum() / np.square(expected.astype(float)).sum())
        assert errors[f"{module}.weight"] == pytest.approx(error, rel=1e-4)
        assert 1e-4 < error < most


def test_an_unquantised_model_needs_bits(tmp_path: Path) -> None:
    model = model_of(tmp_path, preset="dense")
    with pytest.raises(ArgumentError, match="has no quantised matrix; give 4 or 8 bits to quantise it"):
        run(model, tmp_path / "export", "compressed-tensors")


@pytest.mark.parametrize(
    ("kind", "home", "most"),
    [
        ("q4_1", "min4", 0.02),
        ("q4_k", "k4", 0.02),
        ("q5_k", "k8", 0.02),
        ("iq4_nl", "iq4", 0),
        ("iq4_xs", "iq4k", 5e-4),
    ],
)
def test_homes_of_gguf_types_get_eight_bits(tmp_path: Path, kind: str, home: str, most: float) -> None:
    def choose(name: str, shape: tuple[int, int]) -> QuantisedRows | None:
        if not name.endswith("_proj.weight"):
            return None
        blocks = random_blocks(TYPES[kind], *shape, seed=len(name), scale=0.01)
        return QuantisedRows(home, 32, home_parts(kind, blocks))

    model = imported_model(tmp_path, choose, **SIZES)
    errors = finished(run(model, tmp_path / "export", "compressed-tensors")).errors
    config = config_of(tmp_path / "export")
    for module in linear_modules(model):
        arguments = weight_arguments(config, module)
        assert arguments is not None
        assert (arguments["num_bits"], arguments["group_size"], arguments["symmetric"]) == (8, 32, True)
        codes, scales, points = decoded(tmp_path / "export", module, arguments)
        expected = dequantise(model.tensor(f"{module}.weight"))
        values = (codes.astype(float) - np.repeat(points, 32, axis=1)) * np.repeat(scales.astype(float), 32, axis=1)
        error = np.sqrt(np.square(values - expected).sum() / np.square(expected.astype(float)).sum())
        assert errors[f"{module}.weight"] == pytest.approx(error, rel=1e-4)
        assert error <= most
