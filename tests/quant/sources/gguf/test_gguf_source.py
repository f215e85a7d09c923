"""Models in GGUF files: what a conversion keeps, and which files are refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant import formats
from quant.container import open_model
from quant.conversion import ConversionPlanned, TensorFinished
from quant.errors import CheckpointError
from quant.families import parse_config
from quant.quantisers import quantise
from quant.sources import QuantisedRows, open_source
from quant.sources.gguf.block_parts import HOMES
from quant.sources.gguf.gguf_source import GgufSource
from quant.sources.gguf.names import gguf_name
from quant.verification import verify
from tests.quant.checkpoints import make_checkpoint
from tests.quant.converting import run
from tests.quant.sources.gguf.files import Stored, gguf_file
from tests.quant.sources.gguf.models import TYPES, random_blocks, values_in, write_model, write_split

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def mixed_of_small_models(name: str) -> str:
    """Return the types of a Q4_K_M file whose hidden size is not a multiple of 256."""
    if "embed_tokens" in name:
        return "q8_0"
    if "down_proj" in name:
        return "q6_k" if ".0." in name else "q4_k"
    return "q8_0" if "v_proj" in name else "q5_0"


def read_small_files(path: Path) -> None:
    with open_source(path) as source:
        assert source.config
        assert source.files


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_small_files(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def check_conversion(file: Path, folder: Path, **options: Any) -> dict[str, str]:
    """Convert and compare every tensor with gguf-py's values. Return the formats by name."""
    planned, *events = run(file, folder, **options)
    model, values = open_model(folder), values_in(file)
    errors = {event.name: event.error for event in events if isinstance(event, TensorFinished)}
    assert isinstance(planned, ConversionPlanned)
    assert planned.total_bytes_out == model.total_bytes
    assert verify(model) == {}
    with GgufSource.open(file) as source:
        assert set(model.names) == set(source.tensors)
        for name, stored in source.tensors.items():
            packed, expected = model.tensor(name), values[gguf_name(name) or ""]
            if stored.home or len(stored.shape) == 1:
                assert packed.format == (stored.home or "vector")
                assert np.array_equal(formats.dequantise(packed), expected)
                assert errors[name] == 0
            else:
                made, _ = quantise(packed.format, expected, packed.group_size)
                assert all(np.array_equal(packed.parts[part], made.parts[part]) for part in made.parts)
                assert errors[name] == pytest.approx(relative_error(formats.dequantise(packed), expected), rel=1e-4)
    return {name: model.tensor(name).format for name in model.names}


def relative_error(values: np.ndarray, expected: np.ndarray) -> float:
    difference = values.astype(np.float64) - expected
    return float(np.sqrt((difference**2).sum() / (expected.astype(np.float64) ** 2).sum()))


@pytest.mark.parametrize("kind", TYPES)
def test_matrices_of_each_type(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "model.gguf"
    write_model(file, lambda name: kind)
    found = check_conversion(file, tmp_path / "model")
    quantised = TYPES[kind].weights > 1
    assert found[Q_PROJ] == HOMES.get(kind, "q8" if quantised else "q6")
    assert open_source(file).quantised == quantised


@pytest.mark.parametrize("tied", [True, False])
def test_mixed_types_of_a_small_model(tmp_path: Path, tied: bool) -> None:
    file = tmp_path / "model.gguf"
    write_model(file, mixed_of_small_models, config_overrides={"hidden_size": 224, "tie_word_embeddings": tied})
    found = check_conversion(file, tmp_path / "model")
    assert {found[f"model.layers.{layer}.mlp.down_proj.weight"] for layer in (0, 1)} == {"q8", "k4"}
    assert {form for name, form in found.items() if name.endswith("_proj.weight") and "down" not in name} == {"lin8"}
    assert ("lm_head.weight" in found) is not tied
    config = open_model(tmp_path / "model").config
    assert config.tie_word_embeddings is tied


def test_explicit_presets_quantise_again(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_model(file, lambda name: "q4_k")
    events = run(file, tmp_path / "model", preset="q8")
    model, expected = open_model(tmp_path / "model"), values_in(file)["blk.0.attn_q.weight"]
    packed = model.tensor(Q_PROJ)
    assert packed.format == "q8"
    made, _ = quantise("q8", expected, packed.group_size)
    assert all(np.array_equal(packed.parts[part], made.parts[part]) for part in made.parts)
    assert {event.error > 0 for event in events if isinstance(event, TensorFinished) and event.name == Q_PROJ} == {True}


@pytest.mark.parametrize("kind", ["q6_k", "q4_k", "bf16"])
def test_results_do_not_depend_on_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    file = tmp_path / "model.gguf"
    write_model(file, lambda name: kind)
    run(file, tmp_path / "whole")
    monkeypatch.setattr("quant.tensor_pipeline.CHUNK_WEIGHTS", 5000)
    run(file, tmp_path / "pieces")
    for path in sorted((tmp_path / "whole").iterdir()):
        assert path.read_bytes() == (tmp_path / "pieces" / path.name).read_bytes()


def test_qwen3(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    overrides = {"model_type": "qwen3", "head_dim": 128, "tie_word_embeddings": True}
    config = write_model(file, lambda name: "q8_0", config_overrides=overrides)
    check_conversion(file, tmp_path / "model")
    model = open_model(tmp_path / "model")
    assert model.config == replace(parse_config(config), torch_dtype=None)
    assert model.config.head_dim == 128


def test_config_and_tokenizer_come_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    config = write_model(file)
    run(file, tmp_path / "model")
    model = open_model(tmp_path / "model")
    assert model.config == replace(parse_config(config), torch_dtype=None)
    published = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert json.loads((tmp_path / "model" / "tokenizer.json").read_text())["model"]["vocab"] == published
    source = open_source(file)
    assert set(source.files) >= {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert source.name == "model.gguf"
    assert parse_config(json.loads(source.files["config.json"])) == source.config


@pytest.mark.parametrize("bits", [0x7C00, 0x7E00])
@pytest.mark.parametrize("kind", ["q4_0", "q6_k", "q4_k", "iq4_xs"])
def test_scales_that_are_not_finite_are_refused(tmp_path: Path, kind: str, bits: int) -> None:
    blocks = random_blocks(TYPES[kind], 256, 256, seed=1)
    for position in {"q6_k": (208,)}.get(kind, (0,)):
        blocks[7, -1, position : position + 2] = np.array([bits], "<u2").view(np.uint8)
    file = tmp_path / "model.gguf"
    write_model(file, tensors={"blk.0.attn_q.weight": Stored(TYPES[kind].number, (256, 256), blocks.tobytes())})
    with pytest.raises(
        CheckpointError, match=r"tensor model\.layers\.0\.self_attn\.q_proj\.weight is (NaN|infinite) at"
    ):
        run(file, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_vectors_of_any_type_are_read(tmp_path: Path) -> None:
    """llama.cpp does not quantise vectors, but the format allows it."""
    tensors = {}
    for name, kind in {"output_norm": "q8_0", "blk.0.attn_norm": "q6_k", "blk.1.attn_norm": "f16"}.items():
        blocks = random_blocks(TYPES[kind], 1, 256, seed=3)
        tensors[f"{name}.weight"] = Stored(TYPES[kind].number, (256,), blocks.tobytes())
    file = tmp_path / "model.gguf"
    write_model(file, tensors=tensors)
    values = values_in(file)
    with open_source(file) as source:
        for name in tensors:
            ours = {"output_norm.weight": "model.norm.weight"}.get(name, "")
            ours = ours or f"model.layers.{name[4]}.input_layernorm.weight"
            assert np.array_equal(source.read(ours), values[name])
            assert np.array_equal(source.read(ours, 10, 20), values[name][10:20])


def test_rows_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_model(file)
    with open_source(file) as source:
        with pytest.raises(CheckpointError, match=r"rows 250\.\.257 of tensor .* do not exist; it has 256 rows"):
            source.read(Q_PROJ, 250, 257)
        with pytest.raises(CheckpointError, match="has no tensor blk"):
            source.read("blk.0.attn_q.weight")
        rows = source.read(Q_PROJ, 3, 5)
        assert isinstance(rows, QuantisedRows)
        assert rows.parts["codes"].shape == (2, 256)
        source.release(Q_PROJ, 3, 5)


@pytest.mark.parametrize("parts", [2, 5])
def test_split_models(tmp_path: Path, parts: int) -> None:
    whole = tmp_path / "whole.gguf"
    write_model(whole, mixed_of_small_models)
    first = write_split(tmp_path, whole, parts)
    run(whole, tmp_path / "of whole")
    for part in (first, sorted(tmp_path.glob("split-*"))[-1]):
        run(part, tmp_path / part.stem)
        model = open_model(tmp_path / part.stem)
        for path in sorted((tmp_path / "of whole").iterdir()):
            if path.suffix != ".json" or path.name.startswith(("config", "tokenizer")):
                assert path.read_bytes() == (tmp_path / part.stem / path.name).read_bytes()
        assert verify(model) == {}
    assert open_source(first).fingerprint != open_source(whole).fingerprint


def test_parts_must_belong_together(tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    write_model(whole)
    first = write_split(tmp_path, whole, 3)
    second, third = (first.with_name(f"split-0000{number}-of-00003.gguf") for number in (2, 3))
    contents = {path: path.read_bytes() for path in (first, second, third)}
    count = len(values_in(whole))

    def refused(changes: Mapping[Path, bytes | None]) -> str:
        for path, data in {**contents, **changes}.items():
            path.unlink(missing_ok=True)
            if data is not None:
                path.write_bytes(data)
        return refusal(first).replace(str(tmp_path), "DIR")

    assert refused({third: None}) == (
        "DIR/split-00003-of-00003.gguf is missing, but the model has 3 parts; download all of them"
    )
    assert refused({first: None}) == (
        "DIR/split-00001-of-00003.gguf is missing, but the model has 3 parts; download all of them"
    )
    assert refused({second: contents[third], third: contents[second]}) == (
        "DIR/split-00002-of-00003.gguf is part 3, but its name stands for part 2; give all parts the names they had"
    )
    assert refused({second: whole.read_bytes()}) == (
        "DIR/split-00002-of-00003.gguf is one of 1 parts, but its name stands for 3; give all parts the names they had"
    )
    other = tmp_path / "other"
    other.mkdir()
    write_split(other, whole, 3, {2: {"split.tensors.count": 7}})
    assert refused({third: (other / third.name).read_bytes()}) == (
        f"DIR/split-00003-of-00003.gguf belongs to a model of 7 tensors, but the parts have {count}; "
        "download all parts again"
    )
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(contents[first])
    assert refusal(alone) == (
        f"{alone} is one of 3 parts, but its name stands for 1; give all parts the names they had"
    )


def test_folders_and_files_without_suffix(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_model(folder / "a.gguf")
    assert open_source(folder).path == folder / "a.gguf"
    blob = tmp_path / "sha256-0123"
    shutil.copy(folder / "a.gguf", blob)
    assert open_source(blob).fingerprint == open_source(folder).fingerprint
    shutil.copy(folder / "a.gguf", folder / "b.gguf")
    assert refusal(folder) == f"{folder} contains 2 GGUF models (a.gguf, b.gguf); give one of the files"
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    shutil.copy(folder / "a.gguf", checkpoint / "a.gguf")
    assert open_source(checkpoint).path == checkpoint
    text = tmp_path / "text"
    text.write_text("Not a model at all, but long enough")
    assert refusal(text) == f"{text} is not a GGUF file: it begins with b'Not ', not b'GGUF'"


EXTRA = Stored(0, (32,), b"\0" * 128)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rope factors": (
        {"tensors": {"rope_freqs.weight": EXTRA}},
        "FILE contains tensor rope_freqs.weight, which supported models do not have; is it the right file?",
    ),
    "a name of Hugging Face": (
        {"tensors": {"model.norm.weight": EXTRA}},
        "FILE contains tensor model.norm.weight, which supported models do not have; is it the right file?",
    ),
    "architecture": (
        {"metadata": {"general.architecture": "llama"}},
        "FILE: general.architecture is 'llama'; only 'qwen2' and 'qwen3' are supported",
    ),
    "no architecture": (
        {"metadata": {"general.architecture": ...}},
        "FILE has no general.architecture; it does not describe a model",
    ),
    "split as text": (
        {"metadata": {"split.count": "one"}},
        "FILE: split.count is not a number of parts or tensors; download the file again",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(tmp_path: Path, case: str) -> None:
    changes, message = REFUSED[case]
    file = tmp_path / "model.gguf"
    write_model(file, **changes)
    assert refusal(file).replace(str(file), "FILE") == message


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"blk.1.ffn_up.weight": None}, r"config\.json requires tensor model\.layers\.1\.mlp\.up_proj\.weight"),
        ({"blk.2.ffn_up.weight": Stored(0, (32,), b"\0" * 128)}, "num_hidden_layers is 2, but the tensors have 3"),
        (
            {"blk.1.ffn_norm.weight": Stored(0, (32,), b"\0" * 128)},
            r"post_attention_layernorm\.weight has shape \[32\]",
        ),
        (
            {"output_norm.bias": Stored(0, (32,), b"\0" * 128)},
            r"contains tensor model\.norm\.bias, which a Qwen2 model",
        ),
    ],
)
def test_tensors_must_fit_the_metadata(tmp_path: Path, tensors: dict[str, Stored | None], message: str) -> None:
    file = tmp_path / "model.gguf"
    write_model(file, tensors=tensors)
    with pytest.raises(CheckpointError, match=message):
        run(file, tmp_path / "model")


def test_vocabularies_without_a_model_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "vocabulary.gguf"
    file.write_bytes(gguf_file({"general.architecture": "qwen2"}))
    assert refusal(file) == f"{file} has neither token_embd.weight nor tokens; is it a file with a vocabulary only?"


def test_files_that_shrink_while_they_are_read(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_model(file)
    with open_source(file) as source:
        assert source.config
        os.truncate(file, 4096)
        with pytest.raises(CheckpointError, match=r"model\.gguf shrank while it was read; download it again"):
            source.read(Q_PROJ)
        with pytest.raises(CheckpointError, match=r"model\.gguf shrank while it was read; download it again"):
            assert source.files


def test_special_files_do_not_hang(tmp_path: Path) -> None:
    pipe = tmp_path / "model.gguf"
    os.mkfifo(pipe)
    assert refusal(pipe) == f"{pipe} is not a regular file; is {tmp_path} the right folder?"
    link = tmp_path / "other.gguf"
    link.symlink_to("/dev/zero")
    assert refusal(link) == f"{link} is not a regular file; is {tmp_path} the right folder?"
