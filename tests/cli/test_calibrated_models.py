"""`qwchat convert --calibration FILE`, and what `show` says of its model."""

from __future__ import annotations

import json
from pathlib import Path

from quant.container import open_model
from qwchat.cli.exit_codes import ExitCode
from tests.cli.test_quality_gate import run
from tests.quant.calibration.made_statistics import write_statistics
from tests.quant.checkpoints import make_checkpoint


def test_show_says_that_a_model_is_calibrated(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "tiny")
    statistics = write_statistics(tmp_path / "statistics", source)
    destination = tmp_path / "model"
    words = ("convert", str(source), str(destination), "--no-check")
    assert run(*words, home=tmp_path)[0] == ExitCode.OK
    assert "calibrated" not in run("show", str(destination), home=tmp_path)[1]
    calibrated = (*words, "--calibration", str(statistics))
    code, _, said = run(*calibrated, home=tmp_path)
    assert code == ExitCode.USAGE
    assert "already contains a model; use --force to replace it" in said
    assert run(*calibrated, "--force", home=tmp_path)[0] == ExitCode.OK
    assert "(preset q4, calibrated)" in run("show", str(destination), home=tmp_path)[1]
    shown = json.loads(run("show", str(destination), "--json", home=tmp_path)[1])
    assert shown["settings"]["calibration"] == open_model(destination).manifest["settings"]["calibration"]


def test_statistics_of_another_model_end_with_one_line(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "tiny")
    foreign = write_statistics(tmp_path / "foreign", make_checkpoint(tmp_path / "other", seed=1))
    words = ("convert", str(source), str(tmp_path / "model"), "--calibration")
    for path in (foreign, tmp_path / "missing"):
        code, out, said = run(*words, str(path), home=tmp_path)
        assert (code, out) == (ExitCode.MODEL, "")
        assert said.startswith(f"qwchat: error: {path}")
        assert said.count("\n") == 1
