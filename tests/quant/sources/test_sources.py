"""Conversion of any source: quantised values are kept, and every row is read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant import formats
from quant.container import open_model
from quant.conversion import ConversionPlanned, TensorFinished
from quant.errors import ArgumentError, CheckpointError
from quant.families import expected_tensors, parse_config
from quant.quantisers import quantise
from quant.sources import QuantisedRows
from quant.verification import verify
from tests.quant.checkpoints import CONFIG, random_tensors
from tests.quant.converting import run
from tests.quant.sources.memory import MemorySource, grouped

WIDE = {**CONFIG, "intermediate_size": 128}
"""In this config, groups of 64 fit the columns of every matrix."""
GATE = "model.layers.1.mlp.gate_proj.weight"


def made_up(bits: int, group_size: int) -> MemorySource:
    """Return a model whose matrices are quantised, except the embedding."""
    random = np.random.default_rng(5)
    contents: dict[str, Any] = dict(random_tensors(parse_config(WIDE), seed=5))
    for name, values in contents.items():
        if values.ndim == 2 and "embed_tokens" not in name:
            contents[name] = grouped(values.shape, bits, group_size, random)
    return MemorySource(WIDE, contents)


def convert_it(source: MemorySource, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[Any]:
    monkeypatch.setattr("quant.conversion.open_source", lambda path: source)
    return run(source.path, folder, **options)


@pytest.mark.parametrize(
    ("bits", "group_size", "preset", "formats_of_codes"),
    [
        (4, 32, None, {"lin4"}),
        (4, 64, None, {"lin4"}),
        (8, 64, None, {"lin8"}),
        (4, 32, "imported", {"lin4"}),
        (4, 64, "lin4", {"lin4"}),
        (8, 32, "lin8", {"lin8"}),
        (8, 64, "lin8", {"lin8"}),
    ],
)
@pytest.mark.parametrize("chunk_weights", [1, 1 << 22])
def test_codes_are_kept_where_the_format_holds_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bits: int,
    group_size: int,
    preset: str | None,
    formats_of_codes: set[str],
    chunk_weights: int,
) -> None:
    monkeypatch.setattr("quant.tensor_pipeline.CHUNK_WEIGHTS", chunk_weights)
    source = made_up(bits, group_size)
    asked = {} if preset in (None, "imported") else {"group_size": group_size}
    planned, *events = convert_it(source, tmp_path / "model", monkeypatch, preset=preset, **asked)
    errors = {event.name: event.error for event in events if isinstance(event, TensorFinished)}
    model = open_model(tmp_path / "model")
    assert isinstance(planned, ConversionPlanned)
    assert planned.total_bytes_out == model.total_bytes
    seen = set()
    for name in model.names:
        content = source.read(name)
        if isinstance(content, QuantisedRows):
            packed = model.tensor(name)
            if packed.format != content.format:
                assert (preset, packed.format, name) == ("lin4", "lin8", "lm_head.weight")
                continue
            seen.add(packed.format)
            fmt = formats.find_format(packed.format)
            assert isinstance(fmt, formats.IntegerFormat)
            codes, scales, zeros = fmt.codes(packed), fmt.scales(packed), fmt.zeros(packed)
            assert np.array_equal(codes, content.parts["codes"])
            assert np.array_equal(scales, content.parts["scales"])
            assert np.array_equal(zeros, content.parts["zeros"])
            assert np.array_equal(formats.dequantise(packed), content.dequantise())
            assert errors[name] == 0
    assert seen == formats_of_codes
    assert {tensor.name: tensor.packed_bytes for tensor in planned.tensors} == {
        name: model.tensor(name).nbytes for name in model.names
    }
    assert verify(model) == {}


@pytest.mark.parametrize(
    ("bits", "group_size", "options"),
    [
        (4, 32, {"preset": "q4"}),
        (4, 32, {"preset": "q8"}),
        (4, 32, {"preset": "lin4", "group_size": 64}),
        (4, 64, {"preset": "lin8", "group_size": 32}),
        (4, 64, {"preset": "lin8", "group_size": 64}),
        (8, 32, {"preset": "lin4"}),
        (8, 64, {"preset": "dense"}),
    ],
)
def test_values_are_quantised_where_the_format_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, group_size: int, options: dict[str, Any]
) -> None:
    source = made_up(bits, group_size)
    convert_it(source, tmp_path / "model", monkeypatch, **options)
    packed, content = open_model(tmp_path / "model").tensor(GATE), source.read(GATE)
    assert isinstance(content, QuantisedRows)
    expected, _ = quantise(packed.format, content.dequantise(), packed.group_size)
    assert packed.parts.keys() == expected.parts.keys()
    for name, part in expected.parts.items():
        assert np.array_equal(packed.parts[name], part)
    if options["preset"] == "dense":
        assert np.array_equal(formats.dequantise(packed), content.dequantise())


def test_every_row_is_read_once_and_the_source_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quant.tensor_pipeline.CHUNK_WEIGHTS", 3000)
    source = made_up(4, 32)
    convert_it(source, tmp_path / "model", monkeypatch, preset="lin4")
    shapes = expected_tensors(source.config)
    rows = dict.fromkeys(shapes, 0)
    for name, start, stop in sorted(source.reads):
        assert start == rows[name]
        rows[name] = stop
    assert rows == {name: shape[0] for name, shape in shapes.items()}
    assert source.closed


def test_a_scale_that_is_not_finite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = made_up(4, 32)
    content = source._contents[GATE]
    assert isinstance(content, QuantisedRows)
    content.parts["scales"][3, 1] = np.inf
    with pytest.raises(CheckpointError, match=rf"^memory: tensor {GATE} is (infinite|NaN) at \[3, \d+\]"):
        convert_it(source, tmp_path / "model", monkeypatch, preset="lin4")
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_names_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = made_up(4, 32)
    convert_it(source, tmp_path / "model", monkeypatch, preset="lin4")
    model = open_model(tmp_path / "model")
    assert model.manifest["source"] == {"name": "memory", "fingerprint": "0" * 64, "bytes": source.total_bytes}
    assert (tmp_path / "model" / "config.json").read_bytes() == source.files["config.json"]
    assert model.config == source.config


def test_other_matrices_of_a_quantised_source_become_q8_with_a_measured_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = made_up(4, 32)
    planned, *events = convert_it(source, tmp_path / "model", monkeypatch)
    assert isinstance(planned, ConversionPlanned)
    assert planned.preset == "imported"
    errors = {event.name: event.error for event in events if isinstance(event, TensorFinished)}
    kept = {plan.name for plan in planned.tensors if plan.kept}
    assert kept == {name for name, stored in source.tensors.items() if stored.home}
    model = open_model(tmp_path / "model")
    for plan in planned.tensors:
        assert model.tensor(plan.name).format == plan.format
        if not plan.kept:
            assert plan.format == ("q8" if len(plan.shape) == 2 else "vector")
    assert 0 < errors["model.embed_tokens.weight"] < 0.01
    assert model.manifest["settings"] == {"preset": "imported", "group_size": 32}


def test_a_source_without_quantised_tensors_has_no_imported_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = MemorySource(WIDE, dict(random_tensors(parse_config(WIDE), seed=5)))
    assert not source.quantised
    with pytest.raises(ArgumentError, match="'imported' needs a quantised source"):
        convert_it(source, tmp_path / "model", monkeypatch, preset="imported")
    planned, *_ = convert_it(source, tmp_path / "model", monkeypatch)
    assert planned.preset == "q4"
