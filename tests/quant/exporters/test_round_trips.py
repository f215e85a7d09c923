"""Code-for-code imports give the bytes of their source back when they are exported, and import(export(x)) is x."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer

from quant.container import ModelFolder, open_model
from quant.sources import open_source
from tests.quant.converting import run as convert
from tests.quant.exporters.exporting import model_of, read_safetensors, run
from tests.quant.sources.gguf.models import write_model
from tests.quant.sources.packing import FORMS, Form, make_packed

KEPT = [form for form in FORMS if form.scale_type == "f16"]
PACKED = [form for form in KEPT if form.method == "compressed-tensors" and form.group_size]
BLOCK_TYPES = ("q4_0", "q5_0", "q8_0", "q4_1", "q4_k", "q5_k", "iq4_nl", "iq4_xs")


def name_of(form: Form) -> str:
    return form.name


def imported(source: Path, folder: Path) -> ModelFolder:
    convert(source, folder)
    return open_model(folder)


def layer_checksums(model: ModelFolder) -> dict[str, str]:
    """Return the checksum of the parts of each matrix of a layer: its codes, scales and zero points."""
    tensors = model.manifest["tensors"]
    return {name: entry["sha256"] for name, entry in tensors.items() if name.endswith("_proj.weight")}


@pytest.mark.parametrize("form", KEPT, ids=name_of)
def test_importing_a_compressed_tensors_export_gives_the_model_back(tmp_path: Path, form: Form) -> None:
    make_packed(tmp_path / "source", form)
    model = imported(tmp_path / "source", tmp_path / "model")
    run(model, tmp_path / "export", "compressed-tensors")
    again = imported(tmp_path / "export", tmp_path / "again")
    assert {model.manifest["tensors"][name]["format"] for name in layer_checksums(model)} == {f"lin{form.bits}"}
    assert layer_checksums(again) == layer_checksums(model)


@pytest.mark.parametrize("form", PACKED, ids=name_of)
def test_exporting_imported_compressed_tensors_gives_their_bytes_back(tmp_path: Path, form: Form) -> None:
    make_packed(tmp_path / "source", form)
    run(imported(tmp_path / "source", tmp_path / "model"), tmp_path / "export", "compressed-tensors")
    source, exported = read_safetensors(tmp_path / "source"), read_safetensors(tmp_path / "export")
    packed = {name for name in source if name.endswith(("_packed", "_scale", "_zero_point"))}
    assert packed == {name for name in exported if name.endswith(("_packed", "_scale", "_zero_point"))}
    for name in packed:
        assert (exported[name].shape, exported[name].tobytes()) == (source[name].shape, source[name].tobytes())


def blocks_in(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Return type and bytes of each matrix of the GGUF files of a folder."""
    return {
        tensor.name: (tensor.tensor_type.name, tensor.data.tobytes())
        for path in sorted(folder.glob("*.gguf"))
        for tensor in gguf.GGUFReader(path).tensors
        if len(tensor.shape) == 2
    }


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_exporting_an_imported_gguf_file_gives_its_blocks_back(tmp_path: Path, kind: str) -> None:
    (tmp_path / "source").mkdir()
    write_model(tmp_path / "source" / "tiny.gguf", lambda name: kind)
    model = imported(tmp_path / "source" / "tiny.gguf", tmp_path / "model")
    run(model, tmp_path / "export", "gguf", shard_bytes=100_000)
    assert blocks_in(tmp_path / "export") == blocks_in(tmp_path / "source")
    again = imported(tmp_path / "export", tmp_path / "again")
    assert again.config == model.config
    assert layer_checksums(again) == layer_checksums(model)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (again.path / name).read_bytes() == (model.path / name).read_bytes()


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_export_describes_the_model_and_its_tokenizer(tmp_path: Path, tied: bool) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    model = model_of(tmp_path, preset="lin8", config={"tie_word_embeddings": tied, "rope_scaling": yarn})
    run(model, tmp_path / "export", "gguf")
    with open_source(tmp_path / "export") as source:
        unknown: dict[str, Any] = {"torch_dtype": None, "eos_token_ids": (), "bos_token_id": None}
        assert replace(source.config, **unknown) == replace(model.config, **unknown)
        assert set(source.config.eos_token_ids) <= set(model.config.eos_token_ids)
        found = Tokenizer.from_str(source.files["tokenizer.json"].decode())
    original = Tokenizer.from_file(str(model.path / "tokenizer.json"))
    text = "<|im_start|>user\nhello the other thing 42 é 漢字\t\n\n <|im_end|>"
    assert found.encode(text).ids == original.encode(text).ids
