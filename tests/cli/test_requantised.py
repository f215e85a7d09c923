"""Tensors of a quantised source that were not kept, as `convert` and `show` list them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.container import open_model
from quant.families import parse_config
from qwchat.cli import convert, show
from qwchat.cli.convert_options import ConvertOptions
from qwchat.cli.integrity_check import repair_command
from qwchat.cli.model_options import ShowOptions
from tests.cli.fake_qwchat import dependencies
from tests.quant.checkpoints import CONFIG, random_tensors
from tests.quant.sources.memory import MemorySource, grouped

HEAD, EMBEDDING, GATE = "lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture(autouse=True)
def _source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open a model whose head and embedding have a type without a home, and whose first gate has a home."""
    contents: dict[str, Any] = dict(random_tensors(parse_config(CONFIG)))
    contents[GATE] = grouped(contents[GATE].shape, 4, 32, np.random.default_rng(1))
    types = {HEAD: "q6_k", EMBEDDING: "q6_k", "model.layers.1.mlp.up_proj.weight": "q3_k"}
    monkeypatch.setattr("quant.conversion.open_source", lambda path: MemorySource(CONFIG, contents, dtypes=types))


def run(tmp_path: Path, **options: Any) -> None:
    convert.run(ConvertOptions(source=Path("Tiny"), destination=tmp_path / "model", **options), dependencies())


def test_convert_and_show_list_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    said = capsys.readouterr().err
    entries = open_model(tmp_path / "model").manifest["tensors"]
    assert entries[HEAD]["requantised_from"] == "q6_k"
    assert "requantised_from" not in entries[GATE]
    largest = max(entries[HEAD]["relative_error"], entries[EMBEDDING]["relative_error"])
    first = f"2 tensors from q6_k to q8, relative error up to {largest:.4f}"
    other = entries["model.layers.1.mlp.up_proj.weight"]["relative_error"]
    second = f"1 tensor from q3_k to q8, relative error up to {other:.4f}"
    assert 0 < largest < 0.01
    for text in (first, second):
        assert f"quantised again: {text}\n" in said
    show.run(ShowOptions(model=str(tmp_path / "model")), dependencies())
    shown = capsys.readouterr().out
    assert f"quantised again  {first}\n" in shown
    assert f"quantised again  {second}\n" in shown
    show.run(ShowOptions(model=str(tmp_path / "model"), json=True), dependencies())
    tensors = {tensor["name"]: tensor for tensor in json.loads(capsys.readouterr().out)["tensors"]}
    assert tensors[HEAD]["requantised_from"] == "q6_k"
    assert tensors[GATE]["requantised_from"] is None
    assert (tensors[GATE]["format"], tensors[GATE]["relative_error"]) == ("lin4", 0)


def test_json_of_a_conversion_has_every_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, json=True)
    tensors = {tensor["name"]: tensor for tensor in json.loads(capsys.readouterr().out)["tensors"]}
    assert [tensors[GATE][key] for key in ("kept", "requantised_from", "relative_error")] == [True, None, 0]
    assert (tensors[HEAD]["kept"], tensors[HEAD]["requantised_from"]) == (False, "q6_k")
    assert 0 < tensors[HEAD]["relative_error"] < 0.01


def test_a_dry_run_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, dry_run=True)
    shown = capsys.readouterr().out
    assert "quantised again: 2 tensors from q6_k to q8\n" in shown
    assert "quantised again: 1 tensor from q3_k to q8\n" in shown


@pytest.mark.parametrize(("preset", "words"), [(None, "model --force"), ("q4", "model --preset q4 --force")])
def test_the_repair_command_names_a_preset_that_is_not_the_default(
    tmp_path: Path, preset: str | None, words: str
) -> None:
    run(tmp_path, preset=preset)
    assert words in repair_command(open_model(tmp_path / "model"))
