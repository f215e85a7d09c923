"""Reading checkpoints: exact values, and one clear refusal for each kind of broken or hostile file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant import convert
from quant.errors import CheckpointError
from quant.families import expected_tensors, parse_config, read_config
from quant.safe_files import SINGLE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME
from quant.sources import TensorInfo, check_tensors
from quant.sources.huggingface import HuggingFaceCheckpoint
from tests.quant.checkpoints import (
    CONFIG,
    encode,
    make_checkpoint,
    random_tensors,
    write_json,
    write_safetensors,
    write_weights,
)
from tests.quant.sources.memory import MemorySource
from tests.tiers import count

ROW = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("shards", [1, 3])
def test_values_and_rows(tmp_path: Path, dtype: str, shards: int) -> None:
    folder = make_checkpoint(tmp_path, seed=3, dtype=dtype, shards=shards)
    config = read_config(folder)
    stored = {"bf16": None, "f16": np.float16, "f32": np.float32}[dtype]
    item_bytes = 4 if dtype == "f32" else 2
    with HuggingFaceCheckpoint.open(folder) as checkpoint:
        assert check_tensors(checkpoint) == []
        for name, values in random_tensors(config, seed=3).items():
            if stored is None:
                raw = np.frombuffer(encode(values, "bf16")[2], "<u2").reshape(values.shape)
                expected = (raw.astype(np.uint32) << 16).view(np.float32)
            else:
                expected = values.astype(stored).astype(np.float32)
            assert checkpoint.tensors[name] == TensorInfo(values.shape, dtype, values.size * item_bytes)
            assert np.array_equal(checkpoint.read(name), expected)
            assert np.array_equal(checkpoint.read(name, 5, 9), expected[5:9])
            checkpoint.release(name, 0, values.shape[0])
            assert np.array_equal(checkpoint.read(name), expected)
        with pytest.raises(CheckpointError, match="has no tensor nonsense"):
            checkpoint.read("nonsense")
        with pytest.raises(CheckpointError, match=r"rows 0\.\.97"):
            checkpoint.read(ROW, 0, 97)


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    first = HuggingFaceCheckpoint.open(make_checkpoint(tmp_path / "a")).fingerprint
    assert HuggingFaceCheckpoint.open(make_checkpoint(tmp_path / "b")).fingerprint == first
    assert HuggingFaceCheckpoint.open(make_checkpoint(tmp_path / "c", seed=1)).fingerprint != first
    (tmp_path / "b" / "tokenizer_config.json").write_text("{}")
    assert HuggingFaceCheckpoint.open(tmp_path / "b").fingerprint != first


@pytest.mark.parametrize(
    ("shards", "recorded"),
    [
        (1, "5db800400916d04e960012e026f3d0362ac2612346d086c91731a49f280a97b0"),
        (2, "9cc48d3ec22049cd53745887e4d584e43b238f7825074e408b709731b0654aab"),
    ],
)
def test_fingerprints_stay_what_they_were(tmp_path: Path, shards: int, recorded: str) -> None:
    """Compare with version 0.1: with other fingerprints, every checkpoint would be converted again."""
    shapes = {"a.weight": (48, 64), "b.bias": (48,), "c.weight": (64, 96)}
    tensors = {
        name: ((np.arange(np.prod(shape)) * step) % 251 - 125).astype(np.float32).reshape(shape) / 64
        for step, (name, shape) in enumerate(shapes.items(), 3)
    }
    write_weights(tmp_path, tensors, shards=shards)
    (tmp_path / "config.json").write_bytes(b'{"model_type": "qwen2"}\n')
    (tmp_path / "tokenizer.json").write_bytes(b'{"model": {}}\n')
    (tmp_path / "merges.txt").write_bytes("h e\nĠ a\n".encode())
    assert HuggingFaceCheckpoint.open(tmp_path).fingerprint == recorded


@pytest.mark.parametrize("shards", [1, 2])
def test_small_files_and_headers_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int) -> None:
    folder = make_checkpoint(tmp_path / "source", shards=shards)
    opened: list[str] = []
    open_file = os.open

    def counting(path: Any, *options: Any, **more: Any) -> int:
        if Path(path).parent == folder:
            opened.append(Path(path).name)
        return open_file(path, *options, **more)

    monkeypatch.setattr(os, "open", counting)
    assert list(convert(folder, tmp_path / "model", dry_run=True))
    assert sorted(opened) == sorted(path.name for path in folder.iterdir())


def test_config_has_a_limit_of_its_own(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path)
    (folder / "config.json").write_text(" " * (2 << 20))
    refuse(folder, "config.json is larger than the limit of 1,048,576 bytes")
    (folder / "config.json").unlink()
    refuse(folder, r"config\.json does not exist; is .* the right folder\?")


def spoil_header(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the header of model.safetensors after `change`, and leave the data unchanged."""
    path = folder / SINGLE_WEIGHTS_NAME
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def refuse(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        check_tensors(HuggingFaceCheckpoint.open(folder))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900


def shift(header: dict[str, Any], name: str, start: int, stop: int) -> None:
    offsets = header[name]["data_offsets"]
    header[name]["data_offsets"] = [offsets[0] + start, offsets[1] + stop]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: shift(h, ROW, 0, 10**9), "it is truncated"),
        (lambda h: shift(h, ROW, -64, -64), "overlap"),
        (lambda h: shift(h, ROW, 0, -2), "needs 12,288 bytes, but its range has 12,286"),
        (lambda h: h[ROW].update(data_offsets=[-2, 5]), "data_offsets"),
        (lambda h: h[ROW].update(data_offsets=[5, 2]), "data_offsets"),
        (lambda h: h[ROW].update(data_offsets=[0]), "data_offsets"),
        (lambda h: h[ROW].update(data_offsets="all"), "data_offsets"),
        (lambda h: h[ROW].update(data_offsets=[0.0, 2.0]), "data_offsets"),
        (lambda h: h[ROW].update(data_offsets=[1 << 70, 1 << 71]), "data_offsets"),
        (lambda h: h[ROW].update(dtype="F8_E4M3"), "dtype 'F8_E4M3'; supported are"),
        (lambda h: h[ROW].update(dtype=["BF16"]), "supported are"),
        (lambda h: h[ROW].update(dtype="F32"), "needs 24,576 bytes"),
        (lambda h: h[ROW].update(shape=[96, -64]), "has the shape"),
        (lambda h: h[ROW].update(shape=[96, 0]), "has the shape"),
        (lambda h: h[ROW].update(shape=[]), "has the shape"),
        (lambda h: h[ROW].update(shape=[1 << 62, 1 << 62]), "bytes, but its range"),
        (lambda h: h[ROW].update(shape=[1] * 20), "has the shape"),
        (lambda h: h[ROW].update(shape=[64, 96]), r"has shape \[64, 96\], but .* would need \[96, 64\]"),
        (lambda h: h.update({ROW: 5}), "has an entry that is not an object"),
        (lambda h: h.pop(ROW), "do not belong to a tensor"),
        (lambda h: h.pop("lm_head.weight"), "do not belong to a tensor"),
        (
            lambda h: h.update({"model.extra": h.pop(ROW)}),
            "requires tensor model.layers.0.mlp.up_proj.weight, which the checkpoint does not have",
        ),
    ],
)
def test_bad_headers(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    folder = make_checkpoint(tmp_path)
    spoil_header(folder, change)
    refuse(folder, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too few for a safetensors file"),
        (b"1234567", "too few"),
        ((10**12).to_bytes(8, "little") + b"{}", "the header claims 1,000,000,000,000 bytes"),
        ((100_000_001).to_bytes(8, "little") + b"{}" * 100, "the header claims"),
        ((64).to_bytes(8, "little") + b"{}", "the header claims 64 bytes, but the file has 10"),
        ((2).to_bytes(8, "little") + b"[]", "not an object"),
        ((2).to_bytes(8, "little") + b"{x", "not valid JSON"),
        ((2).to_bytes(8, "little") + b"\xff\xff", "not UTF-8"),
        ((2).to_bytes(8, "little") + b"{}", "requires 27 tensors"),
        ((2).to_bytes(8, "little") + b"{}" + b"data", "do not belong to a tensor"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    folder = make_checkpoint(tmp_path)
    (folder / SINGLE_WEIGHTS_NAME).write_bytes(content)
    refuse(folder, message)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.999])
def test_truncated_files(tmp_path: Path, keep: float) -> None:
    folder = make_checkpoint(tmp_path)
    data = (folder / SINGLE_WEIGHTS_NAME).read_bytes()
    (folder / SINGLE_WEIGHTS_NAME).write_bytes(data[: int(len(data) * keep)])
    refuse(folder, "truncated")


def test_bytes_after_the_last_tensor(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path)
    with (folder / SINGLE_WEIGHTS_NAME).open("ab") as file:
        file.write(b"tail")
    refuse(folder, "4 bytes after .* do not belong to a tensor")


def test_missing_files_of_a_checkpoint(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "is not a folder")
    folder = make_checkpoint(tmp_path / "a", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refuse(folder, "model-00002-of-00003.safetensors is missing")
    folder = make_checkpoint(tmp_path / "b")
    (folder / SINGLE_WEIGHTS_NAME).unlink()
    refuse(folder, "has neither model.safetensors nor")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../elsewhere.safetensors", "not a plain file name"),
        ("/etc/passwd", "not a plain file name"),
        ("..", "not a plain file name"),
        (".", "not a plain file name"),
        ("", "not a plain file name"),
        ("a/b.safetensors", "not a plain file name"),
        ("a\\b.safetensors", "not a plain file name"),
        ("a\0b", "not a plain file name"),
        ("n" * 5000, "not a plain file name"),  # the system would refuse these with its own error
        ("é" * 200, "not a plain file name"),
        ("a\ud800", "not a plain file name"),
        ("a\u202eb\n", "not a plain file name"),
        ([[["x"]]] * 5000, "not a plain file name"),
        (7, "not a plain file name"),
        (None, "not a plain file name"),
        ("absent.safetensors", "is missing"),
        ("model-00002-of-00002.safetensors", "contains tensor model.embed_tokens.weight, not listed"),
    ],
)
def test_index_entries(tmp_path: Path, file: object, message: str) -> None:
    folder = make_checkpoint(tmp_path / "model", shards=2)
    write_safetensors(tmp_path / "elsewhere.safetensors", {"model.embed_tokens.weight": ("F32", (1,), b"1234")})
    index = json.loads((folder / WEIGHTS_INDEX_NAME).read_text())
    index["weight_map"]["model.embed_tokens.weight"] = file
    (folder / WEIGHTS_INDEX_NAME).write_text(json.dumps(index))
    refuse(folder, message)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}', "null", "{"])
def test_bad_index(tmp_path: Path, content: str) -> None:
    folder = make_checkpoint(tmp_path, shards=2)
    (folder / WEIGHTS_INDEX_NAME).write_text(content)
    refuse(folder, "weight_map|JSON")


def test_shards_that_disagree_with_the_index(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", shards=2)
    index = json.loads((folder / WEIGHTS_INDEX_NAME).read_text())
    del index["weight_map"]["lm_head.weight"]
    write_json(folder / WEIGHTS_INDEX_NAME, index)
    refuse(folder, "contains tensor lm_head.weight, not listed in")
    folder = make_checkpoint(tmp_path / "b", shards=2)
    one = folder / "model-00001-of-00002.safetensors"
    (folder / "model-00002-of-00002.safetensors").write_bytes(one.read_bytes())
    refuse(folder, "does not contain|in two shards")


def test_a_published_config_that_is_wrong() -> None:
    """Refuse the config of a public page: 32 layers and 64/8 heads of 56 instead of 28 layers and 28/4 heads of 128."""
    shapes = {"hidden_size": 3584, "intermediate_size": 18944, "vocab_size": 152064}
    right = {**CONFIG, **shapes, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    zero = np.zeros((), np.float32)
    tensors = {name: np.broadcast_to(zero, shape) for name, shape in expected_tensors(parse_config(right)).items()}
    assert check_tensors(MemorySource(right, tensors)) == []
    wrong = {**right, "num_hidden_layers": 32, "num_attention_heads": 64, "num_key_value_heads": 8}
    with pytest.raises(CheckpointError) as caught:
        check_tensors(MemorySource(wrong, tensors, "Qwen2-7B"))
    assert str(caught.value) == (
        "Qwen2-7B: config.json contradicts the tensors: num_hidden_layers is 32, but the tensors have 28 layers; "
        "model.layers.0.self_attn.k_proj.weight has shape [512, 3584], but hidden_size 3584 and num_key_value_heads 8 "
        "of head_dim 56 would need [448, 3584] (and 111 more shapes); one of the two is from another model"
    )


def test_contradictions_name_both_numbers(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "num_hidden_layers": 3, "num_attention_heads": 8})
    refuse(folder, r"num_hidden_layers is 3, but the tensors have 2 layers; .*has shape \[32, 64\].*\[16, 64\]")
    write_json(folder / "config.json", {**config, "num_hidden_layers": 1})
    refuse(folder, "num_hidden_layers is 1, but the tensors have 2 layers")
    write_json(folder / "config.json", {**config, "vocab_size": 321})
    refuse(folder, r"has shape \[320, 64\], but .*vocab_size 321 would need \[321, 64\] \(and 1 more")
    write_json(folder / "config.json", {**config, "tie_word_embeddings": True})
    assert check_tensors(HuggingFaceCheckpoint.open(folder)) == [
        "lm_head.weight is ignored: tie_word_embeddings is true, so the embedding is the head"
    ]


def test_untied_config_without_head(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, edit=lambda tensors: tensors.pop("lm_head.weight"))
    refuse(folder, "config.json requires tensor lm_head.weight, which the checkpoint does not have")


def test_unexpected_tensors(tmp_path: Path) -> None:
    def add(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)

    folder = make_checkpoint(tmp_path / "a", edit=add)
    assert "inv_freq is ignored" in check_tensors(HuggingFaceCheckpoint.open(folder))[0]

    def add_bias(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.0.self_attn.o_proj.bias"] = np.ones(64, np.float32)

    folder = make_checkpoint(tmp_path / "b", edit=add_bias)
    refuse(folder, "contains tensor model.layers.0.self_attn.o_proj.bias, which a Qwen2 model")


@settings(max_examples=count(150, 30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_header_breaks_the_reader(tmp_path: Path, data: st.DataObject) -> None:
    """Replace bytes of a header: the result is a checkpoint or a CheckpointError."""
    folder = tmp_path / "model"
    if not folder.exists():
        make_checkpoint(folder)
        (folder / "good").write_bytes((folder / SINGLE_WEIGHTS_NAME).read_bytes())
    content = bytearray((folder / "good").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, 2600))
        content[position] = data.draw(st.integers(0, 255))
    (folder / SINGLE_WEIGHTS_NAME).write_bytes(content)
    with suppress(CheckpointError), HuggingFaceCheckpoint.open(folder) as checkpoint:
        check_tensors(checkpoint)
        for name in checkpoint.tensors:
            checkpoint.read(name)


def test_special_files_do_not_hang(tmp_path: Path) -> None:
    for name, message in [
        (SINGLE_WEIGHTS_NAME, "has neither"),
        ("config.json", "is not a regular"),
        (WEIGHTS_INDEX_NAME, "is not a regular"),
    ]:
        folder = make_checkpoint(tmp_path / name)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        refuse(folder, message)


def test_files_that_change_while_they_are_read(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path)
    checkpoint = HuggingFaceCheckpoint.open(folder)
    (folder / SINGLE_WEIGHTS_NAME).write_bytes(b"short")
    with pytest.raises(CheckpointError, match="shrank while it was read"):
        checkpoint.read(ROW)
    checkpoint = HuggingFaceCheckpoint.open(make_checkpoint(tmp_path))
    (folder / SINGLE_WEIGHTS_NAME).unlink()
    with pytest.raises(CheckpointError, match=r"cannot be memory-mapped: .*No such file"):
        checkpoint.read(ROW)
