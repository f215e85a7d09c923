"""Quantised checkpoints as MODEL: a GPTQ folder is imported, listed and estimated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quant.native.object_store import cache_root
from tests.cli.runs import call
from tests.quant.sources.packing import FORMS, make_packed


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWCHAT_CACHE", str(cache_root()))  # The compiled code of all tests.
    make_packed(tmp_path / "models" / "Tiny-GPTQ", FORMS[0])
    return tmp_path / "models"


def shown(*arguments: str, models: Path) -> Any:
    """Run a command with --json and return its data."""
    result = call(*arguments, "--json", models=models)
    assert result.returncode == 0, result.stderr.decode()
    return json.loads(result.stdout)


def test_a_name_and_a_path_are_imported_once(models: Path) -> None:
    first = call("-p", "hi", "-m", "Tiny-GPTQ", models=models)
    assert first.returncode == 0, first.stderr.decode()
    assert f"converting Tiny-GPTQ into {models}/Tiny-GPTQ-imported (first use)" in first.stderr.decode()
    again = call("-p", "hi", "-m", str(models / "Tiny-GPTQ"), models=models)
    assert (again.returncode, b"converting" in again.stderr) == (0, False)
    details = shown("show", "Tiny-GPTQ", models=models)
    assert (details["name"], details["preset"]) == ("Tiny-GPTQ-imported", "imported")
    assert "lin4" in {tensor["format"] for tensor in details["tensors"]}


def test_the_list_names_its_family_and_its_conversion(models: Path) -> None:
    entries = {entry["name"]: entry for entry in shown("list", models=models)["models"]}
    assert (entries["Tiny-GPTQ"]["family"], entries["Tiny-GPTQ"]["remark"]) == (
        "qwen2",
        "checkpoint, converted on first use",
    )


def test_estimates(models: Path) -> None:
    folder = models / "Tiny-GPTQ"
    presets = [entry["preset"] for entry in shown("estimate", str(folder), models=models)["estimates"]]
    assert presets[0] == "imported"
    sizes = shown("estimate", str(folder / "config.json"), models=models)["estimates"]
    assert "q4" in {entry["preset"] for entry in sizes}
