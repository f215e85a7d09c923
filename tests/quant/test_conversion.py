"""Conversion pipeline: events, exact sizes, reproducible bytes, resuming, and refusals without side effects."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant import convert, formats, tensor_pipeline
from quant.container import open_model
from quant.conversion import (
    ConversionAdvanced,
    ConversionFinished,
    ConversionNotice,
    ConversionPlanned,
    TensorFinished,
    TensorStarted,
)
from quant.errors import ArgumentError, CheckpointError, FormatError, QuantError
from quant.sources import open_source
from quant.verification import verify
from tests.quant.checkpoints import make_checkpoint, write_json
from tests.quant.converting import content, run, stop_after

ROW = "model.layers.1.mlp.gate_proj.weight"


def test_events_report_the_whole_conversion(source: Path, tmp_path: Path) -> None:
    events = run(source, tmp_path / "model")
    planned, finished = events[0], events[-1]
    assert isinstance(planned, ConversionPlanned)
    assert isinstance(finished, ConversionFinished)
    assert finished.path == tmp_path / "model"
    model = open_model(tmp_path / "model")
    assert model.total_bytes == planned.total_bytes_out
    assert model.bits_per_weight == planned.bits_per_weight == finished.bits_per_weight
    started = [event.name for event in events if isinstance(event, TensorStarted)]
    done = [event for event in events if isinstance(event, TensorFinished)]
    assert started == [event.name for event in done] == [tensor.name for tensor in planned.tensors]
    for event, tensor in zip(done, planned.tensors, strict=True):
        assert event.format == tensor.format == model.tensor(event.name).format
        assert model.tensor(event.name).nbytes == tensor.packed_bytes
        lowest, highest = {"q4": (0.03, 0.09), "q6": (0.01, 0.03), "vector": (0, 0)}[event.format]
        assert lowest <= event.error <= highest
    advanced = [event.bytes_done for event in events if isinstance(event, ConversionAdvanced)]
    assert advanced == sorted(advanced)
    assert advanced[-1] == planned.total_bytes_in == open_source(source).total_bytes


def test_a_system_that_cannot_reserve_space_gives_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(source, tmp_path / "linux")
    for name in ("posix_fallocate", "fdatasync"):
        monkeypatch.delattr(os, name)
    run(source, tmp_path / "macos")
    assert content(tmp_path / "macos") == content(tmp_path / "linux")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("chunk_weights", [1, 3000, 1 << 22])
def test_bytes_depend_on_nothing_but_source_and_settings(
    source: Path,
    tmp_path: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    chunk_weights: int,
) -> None:
    monkeypatch.setattr(tensor_pipeline, "CHUNK_WEIGHTS", chunk_weights)
    run(source, tmp_path / "model", threads=threads)
    assert content(tmp_path / "model") == expected


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_dense_keeps_every_value(tmp_path: Path, dtype: str) -> None:
    folder = make_checkpoint(tmp_path / "source", dtype=dtype)
    run(folder, tmp_path / "model", preset="dense")
    model, checkpoint = open_model(tmp_path / "model"), open_source(folder)
    for name in model.names:
        assert np.array_equal(formats.dequantise(model.tensor(name)), checkpoint.read(name))
    assert model.tensor(ROW).format == ("bf16" if dtype == "bf16" else "f32")


@pytest.mark.parametrize(
    ("options", "matrix", "preset"),
    [
        ({"preset": "q8"}, "q8", "q8"),
        ({"bits": 8}, "q8", "q8"),
        ({"bits": 4, "group_size": 64}, "lin4", "lin4"),
        ({"preset": "lin8", "group_size": 128}, "lin8", "lin8"),
        ({"preset": "q4-small"}, "q4", "q4-small"),
    ],
)
def test_presets(tmp_path: Path, options: dict[str, Any], matrix: str, preset: str) -> None:
    shapes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2}
    folder = make_checkpoint(tmp_path / "source", config_overrides=shapes)
    run(folder, tmp_path / "model", **options)
    model = open_model(tmp_path / "model")
    assert model.preset == preset
    assert model.tensor(ROW).format == matrix
    assert model.tensor(ROW).group_size == options.get("group_size", 32)
    assert verify(model) == {}


def test_tied_model_with_a_head_of_its_own(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "tie_word_embeddings": True})
    events = run(folder, tmp_path / "model")
    assert any(isinstance(event, ConversionNotice) and "lm_head.weight is ignored" in event.text for event in events)
    assert "lm_head.weight" not in open_model(tmp_path / "model").names


def test_dry_run_touches_nothing(source: Path, tmp_path: Path) -> None:
    (event,) = run(source, tmp_path / "model", dry_run=True)
    assert isinstance(event, ConversionPlanned)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("name", [ROW, "model.norm.weight", "model.layers.0.self_attn.k_proj.bias"])
@pytest.mark.parametrize("preset", ["q4", "dense"])
def test_weights_that_are_not_finite(tmp_path: Path, value: float, name: str, preset: str) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors[name].flat[-2] = value

    folder = make_checkpoint(tmp_path / "source", edit=spoil)
    with pytest.raises(CheckpointError, match=rf"tensor {name} is (NaN|infinite|3e\+38).* at \[\d+(, \d+)?\]"):
        run(folder, tmp_path / "model", preset=preset)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("missing", ["tokenizer.json", "config.json"])
def test_missing_files(tmp_path: Path, missing: str) -> None:
    folder = make_checkpoint(tmp_path / "source")
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=missing):
        run(folder, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"])
def test_broken_json(tmp_path: Path, name: str) -> None:
    folder = make_checkpoint(tmp_path / "source")
    (folder / name).write_text('{"a": ')
    with pytest.raises(CheckpointError, match=f"{name} is not valid JSON"):
        run(folder, tmp_path / "model")


def test_shapes_that_no_format_holds(tmp_path: Path) -> None:
    shapes = {"hidden_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}
    folder = make_checkpoint(tmp_path / "source", config_overrides=shapes)
    with pytest.raises(FormatError, match=r"tensor model\.embed_tokens\.weight cannot be stored: .*multiple of 32"):
        run(folder, tmp_path / "model")


def test_float16_scales_that_overflow(tmp_path: Path) -> None:
    def enlarge(tensors: dict[str, np.ndarray]) -> None:
        tensors[ROW] *= 1e7

    folder = make_checkpoint(tmp_path / "source", edit=enlarge)
    with pytest.raises(FormatError, match=rf"tensor {ROW} cannot be stored: .* float16"):
        run(folder, tmp_path / "model", preset="lin4")
    run(folder, tmp_path / "model", preset="q4")


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        (lambda folder: folder.mkdir() or (folder / "thesis.txt").touch(), {}, "with other files"),
        (lambda folder: folder.mkdir() or (folder / "thesis.txt").touch(), {"force": True}, "with other files"),
        (lambda folder: folder.touch(), {}, "is not a folder"),
        (lambda folder: None, {"threads": 0}, "0 threads"),
        (lambda folder: None, {"preset": "tiny"}, "unknown preset"),
    ],
)
def test_destinations_that_are_refused(
    source: Path, tmp_path: Path, prepare: Callable[[Path], Any], options: dict[str, Any], message: str
) -> None:
    prepare(tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArgumentError, match=message):
        run(source, tmp_path / "model", **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_destination_within_the_source_or_nowhere(source: Path, tmp_path: Path) -> None:
    for destination in (source, source / "model"):
        with pytest.raises(ArgumentError, match="is inside the source"):
            run(source, destination)
    with pytest.raises(ArgumentError, match="is not a folder; create it first"):
        run(source, tmp_path / "a" / "b")


def test_force_replaces_a_model_only_when_the_new_one_is_complete(
    source: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    run(source, tmp_path / "model", preset="q8")
    old = content(tmp_path / "model")
    with pytest.raises(ArgumentError, match="already contains a model; use force=True to replace it"):
        run(source, tmp_path / "model")
    events = convert(source, tmp_path / "model", force=True)
    for event in events:
        if isinstance(event, TensorFinished):
            assert content(tmp_path / "model") == old
            break
    events.close()
    assert content(tmp_path / "model") == old
    run(source, tmp_path / "model", force=True, resume=True)
    assert content(tmp_path / "model") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_empty_folder_is_a_destination(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    (tmp_path / "model").mkdir()
    run(source, tmp_path / "model")
    assert content(tmp_path / "model") == expected


def test_resume_continues_and_restart_discards(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    stop_after(source, tmp_path / "model", 10)
    assert not (tmp_path / "model").exists()
    events = run(source, tmp_path / "model", resume=True)
    assert ConversionNotice("resuming: 10 of 27 tensors are done") in events
    assert sum(isinstance(event, TensorFinished) for event in events) == 17
    assert content(tmp_path / "model") == expected
    assert ConversionNotice(f"{tmp_path / 'model'} is already complete") in run(source, tmp_path / "model", resume=True)

    stop_after(source, tmp_path / "other", 10)
    events = run(source, tmp_path / "other")
    assert any(isinstance(event, ConversionNotice) and "discarded" in event.text for event in events)
    assert sum(isinstance(event, TensorFinished) for event in events) == 27
    assert content(tmp_path / "other") == expected

    events = run(source, tmp_path / "third", resume=True)
    assert any(isinstance(event, ConversionNotice) and "nothing to resume" in event.text for event in events)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other", "third"]


def test_resume_refuses_other_settings_and_other_sources(source: Path, tmp_path: Path) -> None:
    stop_after(source, tmp_path / "model", 10)
    with pytest.raises(ArgumentError, match="has another source or other settings; run without resume to start"):
        run(source, tmp_path / "model", resume=True, preset="q8")
    other = make_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(ArgumentError, match="has another source or other settings"):
        run(other, tmp_path / "model", resume=True)


@pytest.mark.parametrize("damage", ["weights", "short", "gone", "journal", "tail", "record"])
def test_resume_trusts_nothing_that_a_power_cut_may_have_lost(
    source: Path, tmp_path: Path, expected: dict[str, bytes], damage: str
) -> None:
    stop_after(source, tmp_path / "model", 10)
    weights, journal = (tmp_path / ".model.partial" / name for name in ("weights.bin", "journal.jsonl"))
    if damage == "weights":
        data = bytearray(weights.read_bytes())
        data[:4096] = bytes(4096)
        weights.write_bytes(data)
    elif damage == "short":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "gone":
        weights.unlink()
    elif damage == "journal":
        journal.write_bytes(b"\0" * 300)
    elif damage == "tail":
        journal.write_bytes(journal.read_bytes()[:-20])
    else:
        with journal.open("a") as file:
            file.write('{"name": "nonsense", "sha256": "", "relative_error": 0}\n{"x": 1}\n')
    run(source, tmp_path / "model", resume=True)
    assert content(tmp_path / "model") == expected


def test_every_refusal_is_one_line(tmp_path: Path) -> None:
    for options in ({"preset": "x"}, {"bits": 5}, {"threads": -1}, {}):
        with pytest.raises(QuantError) as caught:
            run(tmp_path / "nowhere", tmp_path / "model", **options)
        assert "\n" not in str(caught.value)
