"""Dequantised checkpoints in safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quant.container import open_model
from quant.errors import ArgumentError, FormatError
from quant.exporters.export_events import ExportPlanned
from quant.exporters.floats import f32_to_bf16
from quant.families import expected_tensors
from quant.formats import dequantise
from quant.formats.dense import bf16_to_f32
from quant.sources import open_source
from tests.quant.checkpoints import encode, make_checkpoint
from tests.quant.converting import run as convert
from tests.quant.exporters.exporting import finished, model_of, read_safetensors, run


def test_a_dense_model_gives_its_checkpoint_back(tmp_path: Path) -> None:
    model = model_of(tmp_path, preset="dense")
    # Vectors are float32 in the model; those of the checkpoint were bfloat16.
    events = run(model, tmp_path / "export", "safetensors")
    assert set(finished(events).errors.values()) == {0.0}
    exported, original = read_safetensors(tmp_path / "export"), read_safetensors(tmp_path / "checkpoint")
    assert list(original) == list(expected_tensors(model.config))
    assert {name: values.tobytes() for name, values in exported.items()} == {
        name: values.tobytes() for name, values in original.items()
    }
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "export" / name).read_bytes() == (tmp_path / "checkpoint" / name).read_bytes()


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_values_are_those_of_the_model_rounded_to_the_type(tmp_path: Path, dtype: str) -> None:
    model = model_of(tmp_path, preset="q4")
    errors = finished(run(model, tmp_path / "export", "safetensors", dtype=dtype)).errors
    for name, stored in read_safetensors(tmp_path / "export").items():
        values = dequantise(model.tensor(name))
        _, shape, data = encode(values, dtype)
        assert (stored.shape, stored.tobytes()) == (shape, data)
        rounded = bf16_to_f32(stored) if dtype == "bf16" else stored
        error = np.sqrt(np.square(rounded.astype(float) - values).sum() / np.square(values.astype(float)).sum())
        assert errors[name] == pytest.approx(error, rel=1e-5)
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config == json.loads((tmp_path / "checkpoint" / "config.json").read_text()) | {
        "torch_dtype": {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}[dtype]
    }


def test_every_bfloat16_boundary_rounds_to_nearest_even() -> None:
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = (upper | np.uint32(lower)).view(np.float32)
        values = values[np.abs(values) <= 1e30]
        assert f32_to_bf16(values).tobytes() == encode(values, "bf16")[2]


def test_shards_hold_every_tensor_once_and_open_as_a_source(tmp_path: Path) -> None:
    model = model_of(tmp_path, preset="lin4")
    run(model, tmp_path / "one", "safetensors")
    events = run(model, tmp_path / "many", "safetensors", shard_bytes=30_000)
    planned = events[0]
    assert isinstance(planned, ExportPlanned)
    assert len(planned.files) > 3
    assert planned.files == {path.name: path.stat().st_size for path in (tmp_path / "many").glob("*.safetensors")}
    exported = sum(path.stat().st_size for path in (tmp_path / "many").iterdir())
    records = ("SHA256SUMS", "qwchat-export.json")
    assert planned.total_bytes_out == exported - sum((tmp_path / "many" / name).stat().st_size for name in records)
    one, many = read_safetensors(tmp_path / "one"), read_safetensors(tmp_path / "many")
    assert {name: values.tobytes() for name, values in one.items()} == {
        name: values.tobytes() for name, values in many.items()
    }
    with open_source(tmp_path / "many") as source:  # reads the index and compares it with the shards
        assert set(source.tensors) == set(model.names)


def test_converting_an_export_gives_the_model_back(tmp_path: Path) -> None:
    model = model_of(tmp_path, preset="dense", config={"tie_word_embeddings": True})
    run(model, tmp_path / "export", "safetensors")
    convert(tmp_path / "export", tmp_path / "again", preset="dense")
    again = open_model(tmp_path / "again")
    assert {name: entry["sha256"] for name, entry in again.manifest["tensors"].items()} == {
        name: entry["sha256"] for name, entry in model.manifest["tensors"].items()
    }


def test_weights_beyond_the_range_of_float16_are_refused_by_name(tmp_path: Path) -> None:
    def enlarge(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.norm.weight"][3] = 65536

    make_checkpoint(tmp_path / "checkpoint", edit=enlarge)
    convert(tmp_path / "checkpoint", tmp_path / "model", preset="q8")
    model = open_model(tmp_path / "model")
    with pytest.raises(FormatError, match=r"tensor model\.norm\.weight.*6\.55e\+04 exceeds the range of float16"):
        run(model, tmp_path / "export", "safetensors", dtype="f16")
    assert not list(tmp_path.glob("*export*"))
    run(model, tmp_path / "export", "safetensors")


def test_bits_do_not_belong_to_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="is not quantised; leave 4 bits out"):
        run(model_of(tmp_path, preset="q4"), tmp_path / "export", "safetensors", bits=4)
