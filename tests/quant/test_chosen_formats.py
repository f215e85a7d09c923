"""Formats that are chosen for single matrices, and the version of model folders that contain new formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.container import MANIFEST_NAME, open_model
from quant.conversion import ConversionNotice, ConversionPlanned, TensorFinished, convert_source
from quant.errors import ArgumentError
from quant.formats import dequantise
from quant.policy import ConversionSpec
from quant.sources import open_source
from quant.verification import verify
from tests.quant.converting import content, run

GATE, DOWN = "model.layers.1.mlp.gate_proj.weight", "model.layers.0.mlp.down_proj.weight"


def convert_with(source: Path, destination: Path, choices: dict[str, str], **options: Any) -> list[Any]:
    with open_source(source) as opened:
        return list(convert_source(opened, destination, ConversionSpec("q4-small", 32, choices), **options))


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / MANIFEST_NAME).read_text())
    return manifest


def test_chosen_formats_are_written_and_counted(source: Path, tmp_path: Path) -> None:
    choices = {GATE: "q6", DOWN: "q8"}
    planned, *_ = convert_with(source, tmp_path / "model", choices)
    model, plain = open_model(tmp_path / "model"), run(source, tmp_path / "plain", preset="q4-small")
    assert isinstance(planned, ConversionPlanned)
    assert {name: model.tensor(name).format for name in choices} == choices
    assert planned.total_bytes_out == model.total_bytes > open_model(tmp_path / "plain").total_bytes
    assert manifest_of(tmp_path / "model")["settings"] == {"preset": "q4-small", "group_size": 32, "choices": 2}
    assert "choices" not in manifest_of(tmp_path / "plain")["settings"]
    others = [event.name for event in plain if isinstance(event, TensorFinished) and event.name not in choices]
    for name in others:
        assert model.tensor(name).format == open_model(tmp_path / "plain").tensor(name).format
    assert verify(model) == {}
    exact = open_source(source).read(GATE)
    error = dequantise(model.tensor(GATE)) - exact
    assert np.linalg.norm(error) < 0.025 * np.linalg.norm(exact)


def test_a_resumed_conversion_does_not_mix_choices(source: Path, tmp_path: Path) -> None:
    convert_with(source, tmp_path / "whole", {GATE: "q6"})
    with open_source(source) as opened:
        events = convert_source(opened, tmp_path / "model", ConversionSpec("q4-small", 32, {GATE: "q6"}))
        next(event for event in events if isinstance(event, TensorFinished))
        events.close()
    for choices in ({}, {GATE: "q8"}, {DOWN: "q6"}):
        with pytest.raises(ArgumentError, match="has another source or other settings; run without resume to start"):
            convert_with(source, tmp_path / "model", choices, resume=True)
    events_resumed = convert_with(source, tmp_path / "model", {GATE: "q6"}, resume=True)
    assert any(isinstance(event, ConversionNotice) and "1 of" in event.text for event in events_resumed)
    assert content(tmp_path / "model") == content(tmp_path / "whole")


def test_the_version_rises_only_where_a_format_needs_it(source: Path, tmp_path: Path) -> None:
    convert_with(source, tmp_path / "old", {})
    convert_with(source, tmp_path / "new", {GATE: "q6"})
    formats = {entry["format"] for entry in manifest_of(tmp_path / "old")["tensors"].values()}
    assert manifest_of(tmp_path / "old")["format_version"] == (2 if "q6" in formats else 1)
    run(source, tmp_path / "eight", preset="q8")
    assert manifest_of(tmp_path / "eight")["format_version"] == 1
    assert manifest_of(tmp_path / "new")["format_version"] == 2
    for name in ("old", "new", "eight"):
        open_model(tmp_path / name)
