"""`qwchat convert --calibration sequential`."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import quant
from quant.container import open_model
from quant.formats import dequantise
from quant.sources import open_source
from quant.writer import ModelWriter
from qwchat.calibration import windows_of_text
from qwchat.cli.app import run_app
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.guard import run_guarded
from qwchat.cli.sequential_calibration import text_folder
from tests.quant.checkpoints import make_checkpoint
from tests.quant.converting import content


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"head_dim": 32, "num_hidden_layers": 1, "bos_token_id": None}
    return make_checkpoint(tmp_path_factory.mktemp("source") / "tiny", config_overrides=sizes)


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_of_text, "DEFAULT_TOKENS", 200)


def run(*arguments: str, models: Path) -> tuple[int, str]:
    """Run `qwchat convert` with the real engine in this process; return exit code and errors."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with (
        mock.patch.multiple(sys, stdout=out, stderr=err),
        mock.patch.dict(os.environ, QWCHAT_MODELS=str(models)),
    ):
        words = ("convert", *arguments, "--calibration", "sequential", "--no-check")
        code = run_guarded(lambda: run_app(words, Dependencies()), debug=False)
    err.flush()
    return code, err.buffer.getvalue().decode()


def test_a_dry_run_writes_no_text(checkpoint: Path, tmp_path: Path) -> None:
    code, err = run(str(checkpoint), str(tmp_path / "model"), "--dry-run", models=tmp_path)
    assert (code, err) == (0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_model_is_fitted_to_text_that_it_writes(checkpoint: Path, tmp_path: Path) -> None:
    for name, threads in (("one", "1"), ("two", "2")):
        code, err = run(str(checkpoint), str(tmp_path / name), "--preset", "q4", "--threads", threads, models=tmp_path)
        assert code == 0, err
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert sorted(each.name for each in tmp_path.iterdir() if each.name != ".last-used") == ["one", "two"]
    manifest = open_model(tmp_path / "one").manifest
    assert len(manifest["settings"]["calibration"]) == 64
    list(quant.convert(checkpoint, tmp_path / "plain", preset="q4"))
    name = "model.layers.0.mlp.down_proj.weight"
    with open_source(checkpoint) as source:
        wanted = np.asarray(source.read(name))
    fitted, plain = (dequantise(open_model(tmp_path / folder).tensor(name)) for folder in ("one", "plain"))
    # Fitted to its inputs, a matrix is further from its weights than with the nearest values.
    assert np.square(fitted - wanted).sum() > np.square(plain - wanted).sum()


@pytest.mark.slow
def test_an_interrupted_conversion_continues_with_its_text(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(str(checkpoint), str(tmp_path / "whole"), "--preset", "q4", models=tmp_path)[0] == 0
    path = tmp_path / "model"
    finish = ModelWriter.finish

    def stop(writer: ModelWriter, name: str, error: float) -> None:
        finish(writer, name, error)
        if writer.destination == path and name.endswith("gate_proj.weight"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ModelWriter, "finish", stop)
        assert run(str(checkpoint), str(path), "--preset", "q4", models=tmp_path)[0] == 130
    text = (text_folder(path) / "text.jsonl").read_bytes()
    assert text.count(b"\n") > 1
    with mock.patch("qwchat.calibration.self_written.SelfWrittenText.write", side_effect=AssertionError):
        code, err = run(str(checkpoint), str(path), "--preset", "q4", "--resume", models=tmp_path)
    assert code == 0, err
    assert content(path) == content(tmp_path / "whole")
    assert not text_folder(path).exists()
