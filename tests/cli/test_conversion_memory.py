"""A conversion that does not fit is told so before it starts; so is a model that this machine cannot hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.runs import call
from tests.quant.checkpoints import make_checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "source")


def test_threads_that_do_not_fit_are_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwchat.cpu.memory.available_memory", lambda: 81_000_000)
    result = call("convert", str(source), str(tmp_path / "out"), "--threads", "64", models=tmp_path / "models")
    assert result.returncode == 5
    message = result.stderr.decode()
    assert message.startswith("qwchat: error: converting with 64 threads needs ")
    assert "of memory, but only 81.0 MB are free: use --threads " in message
    fitting = message.split()[-1]
    assert not list(tmp_path.glob("*out*"))
    result = call("convert", str(source), str(tmp_path / "out"), "--threads", fitting, models=tmp_path / "models")
    assert result.returncode == 0, result.stderr
    monkeypatch.setattr("qwchat.cpu.memory.available_memory", lambda: 10_000_000)
    arguments = ("convert", str(source), str(tmp_path / "other"))
    result = call(*arguments, models=tmp_path / "models")
    assert result.returncode == 5
    assert result.stderr.decode().endswith("only 10.0 MB are free: close other programs\n")
    assert call(*arguments, "--dry-run", models=tmp_path / "models").returncode == 0


def test_a_model_larger_than_memory_is_mentioned(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwchat.cpu.memory.total_memory", lambda: 10_000)
    result = call("convert", str(source), str(tmp_path / "out"), "--dry-run", "--json", models=tmp_path / "models")
    (notice,) = json.loads(result.stdout)["notices"]
    assert "and this machine has 10.0 kB of memory, so each token will read weights from the disk: take a" in notice
    assert f"qwchat: {notice}" in result.stderr.decode()
    monkeypatch.setattr("qwchat.cpu.memory.total_memory", lambda: None)
    result = call("convert", str(source), str(tmp_path / "out"), "--dry-run", "--json", models=tmp_path / "models")
    assert json.loads(result.stdout)["notices"] == []
