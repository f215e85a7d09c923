"""Conversion of packed checkpoints: codes, scales and zero points arrive unchanged, and other settings are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant import formats
from quant.container import open_model
from quant.conversion import ConversionNotice, ConversionPlanned, TensorFinished
from quant.errors import CheckpointError
from quant.sources import check_tensors, open_source
from quant.sources.huggingface import HuggingFaceCheckpoint
from quant.sources.packed import PackedCheckpoint, open_packed, wrap
from quant.verification import verify
from tests.quant.checkpoints import encode, write_json, write_safetensors
from tests.quant.converting import run
from tests.quant.sources.packing import (
    FORMS,
    WIDE,
    Entries,
    Form,
    Grid,
    edit_config,
    gptq,
    integers,
    make_packed,
)

DOWN = "model.layers.0.mlp.down_proj"
UP = "model.layers.1.mlp.up_proj"
Q = "model.layers.0.self_attn.q_proj"
BY_NAME = {form.name: form for form in FORMS}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_an_import_keeps_codes_scales_and_zero_points(tmp_path: Path, form: Form) -> None:
    grids = make_packed(tmp_path / "source", form)
    planned, *events = run(tmp_path / "source", tmp_path / "model")
    assert isinstance(planned, ConversionPlanned)
    assert planned.preset == "imported"
    assert not any(isinstance(event, ConversionNotice) for event in events)
    errors = {event.name: event.error for event in events if isinstance(event, TensorFinished)}
    model = open_model(tmp_path / "model")
    assert planned.total_bytes_out == model.total_bytes
    for name, grid in grids.items():
        packed = model.tensor(name)
        fmt = formats.find_format(packed.format)
        assert isinstance(fmt, formats.IntegerFormat)
        assert packed.format == f"lin{form.bits}"
        groups = grid.groups[:: packed.group_size]
        assert np.array_equal(fmt.codes(packed), grid.codes)
        assert np.array_equal(fmt.scales(packed).astype(np.float32), grid.scales[:, groups])
        assert np.array_equal(fmt.zeros(packed), grid.zeros[:, groups])
        assert ("zeros" in packed.parts) == (not form.symmetric)
        assert np.array_equal(formats.dequantise(packed), grid.values)
        assert errors[name] == 0
    assert {model.tensor(name).format for name in ("lm_head.weight", "model.embed_tokens.weight")} == {"q8"}
    assert verify(model) == {}


def test_config_json_of_the_model_does_not_say_that_it_is_packed(tmp_path: Path) -> None:
    make_packed(tmp_path / "source", BY_NAME["awq"])
    run(tmp_path / "source", tmp_path / "model")
    source, copied = (json.loads((tmp_path / each / "config.json").read_text()) for each in ("source", "model"))
    assert source.pop("quantization_config")
    assert copied == source
    with HuggingFaceCheckpoint.open(tmp_path / "source", integers=True) as checkpoint:
        assert open_model(tmp_path / "model").config == wrap(checkpoint).config


def test_a_preset_quantises_the_values(tmp_path: Path) -> None:
    grids = make_packed(tmp_path / "source", BY_NAME["gptq-v2-int4"])
    run(tmp_path / "source", tmp_path / "model", preset="dense")
    model = open_model(tmp_path / "model")
    for name, grid in grids.items():
        assert np.array_equal(formats.dequantise(model.tensor(name)), grid.values)


def test_matrices_without_a_home_are_announced_and_become_q8(tmp_path: Path) -> None:
    form = BY_NAME["gptq-v1-int4"]
    random = np.random.default_rng(3)

    def pack(module: str, grid: Grid) -> Entries:
        if module in (DOWN, UP):
            grid = replace(grid, groups=random.permutation(grid.groups))
        return gptq(module, grid)

    make_packed(tmp_path / "source", form, quantisation={"desc_act": True}, pack=pack)
    events = run(tmp_path / "source", tmp_path / "model")
    assert [event.text for event in events if isinstance(event, ConversionNotice)] == [
        f"the codes of 2 tensors ({DOWN}.weight, {UP}.weight) cannot be kept: "
        "the groups of columns are in activation order"
    ]
    errors = {event.name: event.error for event in events if isinstance(event, TensorFinished)}
    model = open_model(tmp_path / "model")
    for name in (f"{DOWN}.weight", f"{UP}.weight"):
        assert model.tensor(name).format == "q8"
        assert 0 < errors[name] < 0.01
    assert model.tensor(f"{Q}.weight").format == "lin4"


def test_a_tied_model_in_shards(tmp_path: Path) -> None:
    form = BY_NAME["w4a16"]
    config = {**WIDE, "tie_word_embeddings": True}
    grids = make_packed(tmp_path, form, config=config, edit=lambda entries: split(tmp_path, entries))
    (tmp_path / "model.safetensors").unlink()
    with open_source(tmp_path) as source:
        assert isinstance(source, PackedCheckpoint)
        assert source.quantised
        assert check_tensors(source) == []
        assert "lm_head.weight" not in source.tensors
        assert source.stored_names(f"{Q}.weight") == tuple(
            f"{Q}.{part}" for part in ("weight_packed", "weight_scale", "weight_shape")
        )
        assert source.stored_names("model.norm.weight") == ("model.norm.weight",)
        for name, grid in grids.items():
            assert np.array_equal(source.read(name).dequantise(), grid.values)  # type: ignore[union-attr]
            source.release(name, 0, grid.codes.shape[0])


def split(folder: Path, entries: Entries) -> None:
    """Write the entries as two shards, such that tensors of one module lie in both."""
    names = list(entries)
    weight_map = {}
    for number in (1, 2):
        file = f"model-{number:05d}-of-00002.safetensors"
        part = {name: entries[name] for name in names[number - 1 :: 2]}
        write_safetensors(folder / file, part)
        weight_map.update(dict.fromkeys(part, file))
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})


def test_padded_sizes_are_those_of_config_json(tmp_path: Path) -> None:
    form = BY_NAME["gptq-v1-int4-sym"]
    make_packed(tmp_path, form, config={**WIDE, "intermediate_size": 384})
    edit_config(tmp_path, lambda values: values.update(intermediate_size=256))
    message = r"gate_proj\.weight has shape \[384, 128\], but hidden_size 128 and intermediate_size 256 would need"
    with open_source(tmp_path) as source, pytest.raises(CheckpointError, match=message):
        check_tensors(source)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_biases_of_zeros_are_left_out(tmp_path: Path, kind: str) -> None:
    form = BY_NAME["gptq-v1-int4"]
    zeros = np.where(np.arange(256) % 2, np.float32(0), np.float32(-0.0))

    def add(number: float) -> Callable[[Entries], None]:
        def edit(entries: Entries) -> None:
            bias = zeros.copy()
            bias[7] = number
            entries[f"{UP}.bias"] = encode(bias, kind)

        return edit

    make_packed(tmp_path / "zeros", form, edit=add(0))
    with open_source(tmp_path / "zeros") as source:
        assert check_tensors(source) == []
        assert f"{Q}.bias" in source.tensors
        assert f"{UP}.bias" not in source.tensors
    make_packed(tmp_path / "other", form, edit=add(0.5))
    with (
        open_source(tmp_path / "other") as source,
        pytest.raises(CheckpointError, match=rf"contains tensor {UP}\.bias, which a Qwen2 model with this config"),
    ):
        check_tensors(source)


def remove(name: str) -> Callable[[Entries], object]:
    return lambda entries: entries.pop(name)


def put(name: str, *entry: Any) -> Callable[[Entries], object]:
    return lambda entries: entries.update({name: entry[0]})


@pytest.mark.parametrize(
    ("form", "edit", "message"),
    [
        ("gptq-v1-int4", remove(f"{Q}.scales"), r"q_proj\.scales is missing; download the checkpoint again"),
        ("gptq-v1-int4", remove(f"{Q}.qzeros"), r"q_proj\.qzeros is missing"),
        (
            "gptq-v1-int4",
            put(f"{Q}.scales", encode(np.zeros((3, 128)), "f16")),
            r"q_proj\.scales has shape \[3, 128\]; its quantization_config and the other tensors of the module need "
            r"\[4, 128\]",
        ),
        (
            "gptq-v1-int4",
            put(f"{Q}.scales", integers(np.zeros((4, 128)))),
            "has dtype I32; expected F16 or BF16 or F32",
        ),
        ("gptq-v1-int4", put(f"{Q}.g_idx", integers(np.zeros(127))), r"g_idx has shape \[127\]; .* need \[128\]"),
        ("gptq-v1-int4", put(f"{Q}.qweight", integers(np.zeros((16, 127)))), "has 127 rows, which do not fill words"),
        ("gptq-v1-int4", put(f"{Q}.qweight", integers(np.zeros(16))), r"need \[any, any\]"),
        (
            "gptq-v1-int4",
            put(f"{Q}.weight", encode(np.zeros((128, 128)), "f16")),
            "is stored twice, packed and as it is",
        ),
        ("awq", put("model.norm.weight", integers(np.zeros(128))), "has dtype I32 and does not belong to a packed"),
        (
            "awq",
            put("lm_head.qzeros", integers(np.zeros((1, 1)))),
            r"lm_head\.qzeros has dtype I32 and does not belong",
        ),
        ("w4a16", remove(f"{Q}.weight_shape"), r"weight_shape is missing"),
        ("w4a16", put(f"{Q}.weight_shape", integers(np.array([128, 1 << 62]), "I64")), "do not fit the weights"),
        ("w4a16", put(f"{Q}.weight_shape", integers(np.array([128, -128]), "I64")), "do not fit the weights"),
        ("w4a16", put(f"{Q}.weight_shape", integers(np.array([1, 128]), "I64")), "do not fit the weights"),
        ("w4a16", put(f"{Q}.weight_zero_point", integers(np.zeros((16, 4)))), "do not fit the weights"),
        ("w4a16-asym", remove(f"{Q}.weight_zero_point"), r"q_proj do not fit the weights that quantization_config"),
        ("w4a16-asym", put(f"{Q}.weight_zero_point", integers(np.zeros((15, 2)))), r"need \[16, 2\]"),
    ],
)
def test_modules_that_are_damaged_are_refused(
    tmp_path: Path, form: str, edit: Callable[[Entries], object], message: str
) -> None:
    make_packed(tmp_path, BY_NAME[form], edit=edit)
    with open_source(tmp_path) as source, pytest.raises(CheckpointError, match=message) as caught:
        check_tensors(source)
    assert "\n" not in str(caught.value)


def weights(**changes: Any) -> dict[str, Any]:
    group = BY_NAME["w4a16"].config["config_groups"]["group_0"]
    return {"config_groups": {"group_0": {**group, "weights": {**group["weights"], **changes}}}}


def group(**changes: Any) -> dict[str, Any]:
    return {"config_groups": {"group_0": {**BY_NAME["w4a16"].config["config_groups"]["group_0"], **changes}}}


@pytest.mark.parametrize(
    ("form", "settings", "message"),
    [
        ("awq", {"quant_method": "fp8"}, "quant_method 'fp8' is not supported; only 'gptq', 'awq' and 'compressed-ten"),
        ("awq", {"quant_method": ...}, "quant_method None is not supported"),
        ("awq", {"quant_method": ["awq"]}, r"quant_method \['awq'\] is not supported"),
        (
            "awq",
            {"version": "GEMV"},
            "AWQ version 'GEMV' is not supported; only 'gemm' is; give the original checkpoint",
        ),
        ("awq", {"bits": 8}, "codes of 8 bits are not supported; only 4 are"),
        ("awq", {"zero_point": False}, r"AWQ without zero points \(zero_point\) is not supported"),
        ("awq", {"backend": "llm-awq"}, "AWQ files of 'llm-awq' are not supported"),
        ("awq", {"group_size": 0}, "group_size is 0, expected a positive number, or -1"),
        ("awq", {"group_size": -2}, "group_size is -2, expected an integer from -1"),
        ("gptq-v1-int4", {"bits": 3}, "codes of 3 bits are not supported; only 4 and 8 are"),
        ("gptq-v1-int4", {"bits": 2}, "codes of 2 bits are not supported"),
        ("gptq-v1-int4", {"bits": ...}, r"the key 'bits' \(integer\) is missing"),
        ("gptq-v1-int4", {"checkpoint_format": "marlin"}, "GPTQ format 'marlin' is not supported"),
        ("gptq-v1-int4", {"format": "bitblas"}, "GPTQ format 'bitblas' is not supported"),
        ("gptq-v1-int4", {"is_marlin_format": True}, "GPTQ format 'marlin' is not supported"),
        ("gptq-v1-int4", {"pack_dtype": "int8"}, "pack_dtype 'int8' is not supported"),
        (
            "gptq-v1-int4",
            {"dynamic": {"+:.*down.*": {"bits": 8}}},
            r"settings per module \(dynamic\) are not supported",
        ),
        (
            "w4a16",
            {"format": "nvfp4-pack-quantized"},
            "format 'nvfp4-pack-quantized' of compressed-tensors is not supp",
        ),
        ("w4a16", {"format": ...}, r"the key 'format' \(string\) is missing"),
        ("w4a16", {"quantization_status": "frozen"}, "quantization_status 'frozen' is not supported"),
        ("w4a16", {"sparsity_config": {"format": "sparse-24-bitmask"}}, r"sparse weights \(sparsity_config\) are not"),
        ("w4a16", {"kv_cache_scheme": {"num_bits": 8}}, r"scales of a quantised KV cache \(kv_cache_scheme\) are not"),
        ("w4a16", {"transform_config": {"config_groups": {"a": {}}}}, r"transformed weights \(transform_config\) are"),
        ("w4a16", {"config_groups": {}}, "config_groups has 0 groups, expected 1 to 64"),
        ("w4a16", {"config_groups": {"W4A16": ["Linear"]}}, r"W4A16 is \['Linear'\], expected an object"),
        (
            "w4a16",
            group(input_activations={"num_bits": 8}),
            r"group_0: quantised activations \(input_activations\) are",
        ),
        ("w4a16", group(weights=None), r"group_0: the key 'weights' \(object\) is missing"),
        ("w4a16", group(format="float-quantized"), "format 'float-quantized' of compressed-tensors is not supported"),
        ("w4a16", weights(type="float"), "codes of type 'float' are not supported; only 'int' is"),
        ("w4a16", weights(num_bits=2), "codes of 2 bits are not supported"),
        ("w4a16", weights(dynamic=True), "dynamic quantisation of weights is not supported"),
        ("w4a16", weights(strategy="tensor"), "strategy 'tensor' is not supported; only 'group' and 'channel' are"),
        ("w4a16", weights(actorder="sorted"), "actorder 'sorted' is not supported"),
    ],
)
def test_other_forms_are_refused_by_name(tmp_path: Path, form: str, settings: dict[str, Any], message: str) -> None:
    make_packed(tmp_path, BY_NAME[form], quantisation=settings)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_packed(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: quantization_config: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        ("awq", {"version": "GEMM", "modules_to_not_convert": ["lm_head"]}),
        ("gptq-v1-int4-sym", {"dynamic": {"-:lm_head": {}}, "sym": True, "static_groups": False, "batch_size": 1}),
        ("gptq-v1-int4-sym", {"dynamic": None, "meta": {"quantizer": ["gptqmodel:2.0"]}, "lm_head": False}),
        ("w4a16", {"sparsity_config": {"format": "dense"}, "kv_cache_scheme": None, "transform_config": {}}),
        ("w4a16", {"ignore": ["re:.*lm_head"], "global_compression_ratio": 1.5, "version": "0.12"}),
        ("w4a16", weights(actorder="weight", observer="minmax", group_size=32, block_structure=None)),
    ],
)
def test_settings_that_change_nothing_are_accepted(tmp_path: Path, form: str, settings: dict[str, Any]) -> None:
    grids = make_packed(tmp_path, BY_NAME[form], quantisation=settings)
    with open_source(tmp_path) as source:
        assert check_tensors(source) == []
        assert np.array_equal(source.read(f"{Q}.weight").dequantise(), grids[f"{Q}.weight"].values)  # type: ignore[union-attr]


def test_modules_with_different_weights(tmp_path: Path) -> None:
    small, large = BY_NAME["w4a16"], BY_NAME["w8a16-channel"]
    groups = {
        "group_0": small.config["config_groups"]["group_0"],
        "group_1": large.config["config_groups"]["group_0"],
    }

    def pack(module: str, grid: Grid) -> Entries:
        if module == DOWN:
            grid = large.grid(np.random.default_rng(9), (128, 256))
            grids[f"{DOWN}.weight"] = grid
            return large.pack(module, grid)
        return small.pack(module, grid)

    grids: dict[str, Grid] = {}
    made = make_packed(tmp_path, small, quantisation={"config_groups": groups}, pack=pack)
    with open_source(tmp_path) as source:
        assert {name: info.home for name, info in source.tensors.items() if info.home} == {
            name: "lin8" if DOWN in name else "lin4" for name in made
        }
        for name, grid in {**made, **grids}.items():
            assert np.array_equal(source.read(name).dequantise(), grid.values)  # type: ignore[union-attr]


def test_a_checkpoint_without_packed_tensors_is_refused(tmp_path: Path) -> None:
    make_packed(
        tmp_path,
        BY_NAME["awq"],
        quantisation={"quant_method": "compressed-tensors", **group(), "format": "pack-quantized"},
    )
    with open_source(tmp_path) as source, pytest.raises(CheckpointError, match="no tensor is packed, although config"):
        check_tensors(source)


def test_integers_are_refused_without_quantization_config(tmp_path: Path) -> None:
    make_packed(tmp_path, BY_NAME["awq"])
    edit_config(tmp_path, lambda values: values.pop("quantization_config"))
    message = r"model\.safetensors: tensor '.*qweight' has dtype 'I32'; supported are BF16, F16 and F32"
    for open_folder in (open_source, HuggingFaceCheckpoint.open):
        with pytest.raises(CheckpointError, match=message):
            open_folder(tmp_path)


@pytest.mark.parametrize("depth", [100, 5000])
def test_a_config_that_is_nested_deeply_is_copied_or_refused(tmp_path: Path, depth: int) -> None:
    make_packed(tmp_path, BY_NAME["awq"])
    nested = f'"deep": {"[" * depth}{"]" * depth}, "hidden_act"'
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"hidden_act"', nested))
    if depth == 100:
        with open_source(tmp_path) as source:
            assert "deep" in json.loads(source.files["config.json"])
        return
    with pytest.raises(CheckpointError, match="nested too deeply; get the file again"):
        open_source(tmp_path).files  # noqa: B018
