"""`qwchat sensitivity` writes a file that `convert --bits-budget` uses; an interrupted measurement continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quant.container import open_model
from quant.families import expected_tensors
from quant.sensitivities import read_sensitivities
from quant.sources import open_source
from qwchat.cli.exit_codes import ExitCode
from qwchat.evaluation.matrix_divergence import MatrixDivergence
from tests.cli.test_quality_gate import run
from tests.quant.checkpoints import make_checkpoint

SIZES = {"num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint", config_overrides=SIZES)


def measure(checkpoint: Path, *options: str) -> tuple[int, str, str]:
    home = checkpoint.parent
    return run("sensitivity", str(checkpoint), "--tokens", "64", *options, home=home)


def test_the_file_chooses_the_formats_of_a_budget(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "measured.json"
    code, out, said = measure(checkpoint, "-o", str(output))
    assert (code, out) == (ExitCode.OK, f"{output}\n")
    assert "qwchat: 48 measurements on 64 tokens, about " in said
    assert "qwchat: measured 16 matrices in " in said
    measured = read_sensitivities(output)
    with open_source(checkpoint) as source:
        assert measured.fingerprint == source.fingerprint
        assert list(measured.tensors) == [n for n, shape in expected_tensors(source.config).items() if len(shape) == 2]
    assert all(0 <= kinds["q8"] < kinds["q4"] for kinds in measured.tensors.values())
    assert [path.name for path in tmp_path.iterdir() if "journal" in path.name] == []
    arguments = ("convert", str(checkpoint), str(tmp_path / "model"), "--bits-budget", "6", "--no-check")
    code, _, _ = run(*arguments, "--sensitivity", str(output), home=tmp_path)
    assert code == ExitCode.OK
    assert 5.5 < open_model(tmp_path / "model").bits_per_weight <= 6


def test_an_interrupted_measurement_continues_with_the_same_result(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert measure(checkpoint, "-o", str(tmp_path / "whole.json"))[0] == ExitCode.OK
    original, steps = MatrixDivergence.measure, []

    def interrupted(self: MatrixDivergence, step: Any, advance: Any) -> Any:
        steps.append(step)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return original(self, step, advance)

    monkeypatch.setattr(MatrixDivergence, "measure", interrupted)
    code, _, said = measure(checkpoint, "-o", str(tmp_path / "cut.json"))
    assert code == ExitCode.INTERRUPTED
    assert "run the same command with --resume to continue" in said
    assert not (tmp_path / "cut.json").exists()
    code, _, said = measure(checkpoint, "-o", str(tmp_path / "cut.json"), "--resume")
    assert code == ExitCode.OK
    assert "continuing: 2 of 4 steps are done" in said
    assert len(steps) == 5
    assert (tmp_path / "cut.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_a_journal_of_another_measurement_is_not_continued(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.json.journal").write_text('{"identity": "other"}\n[["x", "q4", 1.0]]\n')
    code, _, said = measure(checkpoint, "-o", str(tmp_path / "out.json"), "--resume", "--by", "layer")
    assert code == ExitCode.OK
    assert "there is nothing to resume" in said
    assert "x" not in json.loads((tmp_path / "out.json").read_text())["tensors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "3"], "--tokens must be from 16 to 1,048,576, not 3"),
        (["-", "-"], "- reads standard input: give it once"),
        (["-o", "checkpoint/config.json"], "config.json exists: use --force to overwrite it"),
    ],
)
def test_wrong_options(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str) -> None:
    monkeypatch.chdir(checkpoint.parent)
    code, _, said = run("sensitivity", str(checkpoint), *options, home=checkpoint.parent)
    assert code == ExitCode.USAGE
    assert message in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sensitivity", "x.json"], "--sensitivity needs --bits-budget"),
        (["--bits-budget", "nan"], "--bits-budget must be a number above 0, not nan"),
        (["--bits-budget", "2"], "a budget of 2 bits per weight is too small for this model; give "),
        (["--bits-budget", "6", "--preset", "q4"], "a budget chooses the format of each matrix; leave out"),
        (["--bits-budget", "6", "--sensitivity", "x.json"], "x.json does not exist"),
    ],
)
def test_wrong_budgets(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str) -> None:
    monkeypatch.chdir(checkpoint.parent)
    code, _, said = run("convert", str(checkpoint), "model", *options, home=checkpoint.parent)
    assert code == ExitCode.USAGE
    assert message in said


def test_a_converted_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    assert run("convert", str(checkpoint), str(tmp_path / "model"), "--no-check", home=tmp_path)[0] == ExitCode.OK
    code, _, said = run("sensitivity", str(tmp_path / "model"), home=tmp_path)
    assert code == ExitCode.MODEL
    assert "model is converted already: give the checkpoint that it was made from" in said
