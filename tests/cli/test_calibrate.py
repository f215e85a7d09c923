"""`qwchat calibrate` on a tiny checkpoint and on the built-in model."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from unittest import mock

import pytest

import quant
from quant.calibration import open_statistics
from quant.calibration.statistics_file import read_statistics_header
from quant.sources import open_source
from qwchat.cli.app import run_app
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.guard import run_guarded
from tests.quant.checkpoints import make_checkpoint

TEXT = "the other hello and the resting others, an hour in the inner house. " * 12
TALK = {"messages": [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "hello"}]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "tiny", config_overrides={"head_dim": 32})


def run(*arguments: str, models: Path, stdin: bytes = b"") -> tuple[int, str, str]:
    """Run `qwchat calibrate` with the real engine in this process; return exit code, output and errors."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    streams = {"stdin": io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"), "stdout": out, "stderr": err}
    with mock.patch.multiple(sys, **streams), mock.patch.dict(os.environ, QWCHAT_MODELS=str(models)):
        code = run_guarded(lambda: run_app(("calibrate", *arguments), Dependencies()), debug=False)
    for stream in (out, err):
        stream.flush()
    return code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()


def test_a_text_gives_a_statistics_file_in_the_models_folder(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    code, out, err = run(str(checkpoint), str(text), "--tokens", "200", models=tmp_path)
    path = tmp_path / "tiny.statistics"
    assert (code, out) == (0, f"{path}\n")
    assert err.startswith("qwchat: calibrated with 200 tokens in ")
    with open_source(checkpoint) as source, open_statistics(path, source.config, source.fingerprint) as statistics:
        assert statistics.header.samples == 200
        assert statistics.header.text == "1 file"
        assert statistics.moments("lm_head.weight") is not None


def test_files_and_standard_input_are_read_as_one_text_each(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    path = tmp_path / "s"
    code, out, _ = run(str(checkpoint), str(text), "-", "-o", str(path), "--json", models=tmp_path, stdin=TEXT.encode())
    assert code == 0
    found = json.loads(out)
    assert found["path"] == str(path)
    assert found["text"] == "2 files"
    assert found["inputs"] == 9
    assert found["bytes"] == path.stat().st_size
    assert 500 < found["tokens"] < 16384


def test_conversations_are_read_with_their_template(checkpoint: Path, tmp_path: Path) -> None:
    talk = tmp_path / "talk.jsonl"
    talk.write_text(json.dumps(TALK) + "\n")
    plain = tmp_path / "text.txt"
    plain.write_text(TEXT)
    counts = []
    for arguments in ([str(talk), "--chat"], [str(plain)]):
        path = tmp_path / str(len(counts))
        assert run(str(checkpoint), *arguments, "-o", str(path), models=tmp_path)[0] == 0
        counts.append(read_statistics_header(path)[0].samples)
    assert counts[0] > counts[1]


def test_an_unquantised_model_folder_gives_the_statistics_of_its_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    list(quant.convert(checkpoint, tmp_path / "dense", preset="dense"))
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    for name, model in (("a", checkpoint), ("b", tmp_path / "dense")):
        assert run(str(model), str(text), "-o", str(tmp_path / name), models=tmp_path)[0] == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_quantised_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    list(quant.convert(checkpoint, tmp_path / "small", preset="q8"))
    code, _, err = run(str(tmp_path / "small"), models=tmp_path)
    assert code == 3
    assert err == (
        f"qwchat: error: {tmp_path / 'small'} is quantised (q8): give the checkpoint that it was converted from\n"
    )


@pytest.mark.slow
def test_without_files_the_model_writes_the_text(tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        path = tmp_path / name
        code, _, err = run("mini", "-o", str(path), "--tokens", "150", "--seed", seed, models=tmp_path / "models")
        assert code == 0, err
        header, _ = read_statistics_header(path)
        assert header.text == f"written by the model, seed {seed}"
        assert header.samples == 150
        files.append(path.read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["absent.txt"], 2, "absent.txt does not exist; is . the right folder?"),
        (["short.txt"], 2, "the text has 3 tokens, too few to calibrate: give at least 64"),
        (["empty.txt"], 2, "the text has 0 tokens, too few to calibrate: give at least 64"),
        (["binary"], 2, "binary is a binary file (contains NUL bytes): give a text file"),
        (["short.txt", "--chat"], 2, "short.txt, line 1 is not JSON: give one conversation per line"),
        (["short.txt", "--tokens", "5"], 2, "--tokens must be at least 64, not 5"),
        (["--chat"], 2, "--chat describes files: give one with conversations"),
        (["-", "-"], 2, "- reads standard input: give it once"),
        (["--seed", "-1"], 2, "--seed must be from 0 to 2147483647, not -1"),
        (["long.txt", "-o", "absent/s"], 2, "{folder}/absent is not a folder; create it first"),
        (["long.txt", "-o", "short.txt"], 2, "{folder}/short.txt exists and is not a statistics file; choose another"),
        (["long.txt", "-o", "s"], 2, "{folder}/s already exists; use --force to replace it"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("short.txt", "hello the"), ("empty.txt", ""), ("binary", "a\0b"), ("long.txt", TEXT)):
        Path(name).write_text(text)
    if arguments[-1] == "s":
        assert run(str(checkpoint), "long.txt", "-o", "s", models=tmp_path)[0] == 0
    found, out, err = run(str(checkpoint), *arguments, models=tmp_path)
    assert (found, out) == (code, "")
    assert err == f"qwchat: error: {message.format(folder=tmp_path)}\n"
    assert not list(tmp_path.glob(".*"))


def test_force_replaces_and_resume_finds_nothing_to_do(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    arguments = [str(checkpoint), str(text), "-o", str(tmp_path / "s")]
    assert run(*arguments, models=tmp_path)[0] == 0
    before = (tmp_path / "s").read_bytes()
    code, _, err = run(*arguments, "--resume", models=tmp_path)
    assert code == 0, err
    assert f"qwchat: {tmp_path / 's'} is already complete\n" in err
    assert run(*arguments, "--force", "--tokens", "100", models=tmp_path)[0] == 0
    assert (tmp_path / "s").read_bytes() != before
    assert not list(tmp_path.glob(".*"))
