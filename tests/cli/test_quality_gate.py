"""`qwchat convert` compares its result with the source, tells the distance, and refuses what is too far."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from quant.container import MANIFEST_NAME, open_model
from quant.quality import Quality
from qwchat.cli.app import run_app
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.ensure_model import ensure_model
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.guard import run_guarded
from qwchat.cli.quality_gate import describe, require_within
from qwchat.cli.streams import Streams
from qwchat.evaluation import check_texts as texts_module
from qwchat.evaluation import quality_check
from qwchat.models_folder import embedded_checkpoint
from tests.quant.checkpoints import make_checkpoint, write_json

SOURCE = str(embedded_checkpoint())


@pytest.fixture(autouse=True)
def _few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "MOST_TOKENS", 128)


def run(*arguments: str, home: Path) -> tuple[int, str, str]:
    """Run `qwchat` with the real engine in this process; return exit code, standard output and standard error."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    streams = {"stdin": io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), "stdout": out, "stderr": err}
    with mock.patch.multiple(sys, **streams), mock.patch.dict(os.environ, QWCHAT_MODELS=str(home / "models")):
        code = run_guarded(lambda: run_app(arguments, Dependencies()), debug=False)
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return code, texts[0], texts[1]


def stored(folder: Path) -> Quality:
    quality = open_model(folder).quality
    assert quality is not None
    return quality


def test_a_conversion_tells_its_distance_and_show_repeats_it(tmp_path: Path) -> None:
    code, out, said = run("convert", SOURCE, str(tmp_path / "model"), home=tmp_path)
    assert (code, out) == (ExitCode.OK, f"{tmp_path / 'model'}\n")
    quality = stored(tmp_path / "model")
    assert 0.001 < quality.kl_mean < quality.kl_p999
    line = f"KL {quality.kl_mean:.2g} against the source, same top token {100 * quality.same_top:.1f} %"
    assert said.endswith(f"qwchat: {line}\n")
    assert f"quality          {line}\n" in run("show", str(tmp_path / "model"), home=tmp_path)[1]
    shown = json.loads(run("show", str(tmp_path / "model"), "--json", home=tmp_path)[1])
    assert Quality(**shown["quality"]) == quality


def test_json_has_the_figures(tmp_path: Path) -> None:
    code, out, _ = run("convert", SOURCE, str(tmp_path / "model"), "--max-kl", "1", "--json", home=tmp_path)
    assert code == ExitCode.OK
    assert Quality(**json.loads(out)["quality"]) == stored(tmp_path / "model")


def test_a_model_that_is_too_far_is_refused(tmp_path: Path) -> None:
    code, out, said = run("convert", SOURCE, str(tmp_path / "model"), "--max-kl", "1e-3", home=tmp_path)
    assert (code, out) == (ExitCode.RUNTIME, "")
    *_, last = said.splitlines()
    assert last.startswith("qwchat: error: KL 0.")
    assert last.endswith(" %, which is more than --max-kl 0.001: use more bits or a calibration")
    assert [path.name for path in tmp_path.iterdir() if "model" in path.name] == []


def test_a_distance_that_cannot_be_measured_is_a_notice_or_a_refusal(tmp_path: Path) -> None:
    checkpoint = str(make_checkpoint(tmp_path / "checkpoint"))  # The kernels cannot run heads of 16.
    code, _, said = run("convert", checkpoint, str(tmp_path / "model"), home=tmp_path)
    assert code == ExitCode.OK
    assert "qwchat: the distance from the source is not measured: " in said
    assert "head_dim is 16" in said
    assert open_model(tmp_path / "model").quality is None
    assert "quality          not measured\n" in run("show", str(tmp_path / "model"), home=tmp_path)[1]
    code, _, said = run("convert", checkpoint, str(tmp_path / "other"), "--max-kl", "1", home=tmp_path)
    assert code == ExitCode.RUNTIME
    assert "qwchat: error: the distance from the source cannot be measured (" in said
    assert said.endswith("): convert without --max-kl\n")
    assert not (tmp_path / "other").exists()


def test_no_check_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_check, "compare_with_source", None)
    code, _, said = run("convert", SOURCE, str(tmp_path / "model"), "--no-check", home=tmp_path)
    assert code == ExitCode.OK
    assert "KL" not in said
    assert open_model(tmp_path / "model").quality is None
    again = ("convert", SOURCE, str(tmp_path / "model"), "--resume", "--max-kl", "1")
    code, _, said = run(*again, home=tmp_path)
    assert code == ExitCode.RUNTIME
    assert said.endswith("the model was converted without a check: use --force to repeat it\n")


def test_a_first_use_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWCHAT_MODELS", str(tmp_path / "models"))
    located = ensure_model(SOURCE, Dependencies(), Streams(quiet=True))
    assert open_model(located.path).quality is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-kl", "0"], "--max-kl must be a number above 0, not 0"),
        (["--max-kl", "nan"], "--max-kl must be a number above 0, not nan"),
        (["--max-kl", "inf"], "--max-kl must be a number above 0, not inf"),
        (["--max-kl", "x"], "invalid value for '--max-kl': 'x' is not a number"),
        (["--max-kl", "1", "--no-check"], "--max-kl contradicts --no-check: leave out one of them"),
    ],
)
def test_wrong_options(tmp_path: Path, options: list[str], message: str) -> None:
    code, _, said = run("convert", SOURCE, str(tmp_path / "model"), *options, home=tmp_path)
    assert code == ExitCode.USAGE
    assert said.startswith(f"qwchat: error: {message}")


def test_the_figures_are_short() -> None:
    assert describe(Quality(0.0021, 0.05, 0.968, 10, "")) == "KL 0.0021 against the source, same top token 96.8 %"
    assert describe(Quality(2.83e-5, 0.05, 1.0, 10, "")) == "KL 2.8e-05 against the source, same top token 100.0 %"
    require_within(None, None)
    require_within(Quality(0.5, 1, 1, 10, ""), 0.5)


def test_control_characters_of_a_manifest_are_not_shown(tmp_path: Path) -> None:
    run("convert", SOURCE, str(tmp_path / "model"), "--no-check", home=tmp_path)
    manifest: dict[str, Any] = json.loads((tmp_path / "model" / MANIFEST_NAME).read_text())
    entry = {"kl_mean": 1e6, "kl_p999": 0, "same_top": 0, "tokens": 1, "text": "\x1b[31m\n"}
    write_json(tmp_path / "model" / MANIFEST_NAME, manifest | {"quality": entry})
    code, out, _ = run("show", str(tmp_path / "model"), home=tmp_path)
    assert code == ExitCode.OK
    assert "\x1b" not in out
    assert "KL 1e+06 against the source, same top token 0.0 %" in out
