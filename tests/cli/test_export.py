"""The command `qwchat export`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import gguf
import pytest

from qwchat.cli.export_model import parse_size
from qwchat.errors import UsageError
from tests.cli.runs import call
from tests.quant.checkpoints import make_checkpoint
from tests.quant.converting import run as convert


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a models folder with a checkpoint `tiny`, its conversion `tiny-q4`, and a checkpoint `raw`."""
    folder = tmp_path_factory.mktemp("models")
    make_checkpoint(folder / "tiny")
    make_checkpoint(folder / "raw")
    convert(folder / "tiny", folder / "tiny-q4")
    return folder


def lines(result: subprocess.CompletedProcess[bytes]) -> list[str]:
    return result.stderr.decode().splitlines()


def test_an_export_prints_its_folder_and_the_errors(models: Path, tmp_path: Path) -> None:
    result = call("export", "tiny-q4", str(tmp_path / "out"), "--to", "gguf", models=models)
    assert (result.returncode, result.stdout.decode()) == (0, f"{tmp_path / 'out'}\n")
    *kinds, total = lines(result)
    assert "qwchat: vector as F32: 11 tensors, unchanged" in kinds
    assert any(line.startswith("qwchat: q4 as Q8_0: ") and "relative error up to 0.0002" in line for line in kinds)
    assert total.startswith("qwchat: exported 77.7 kB to ")
    assert len(gguf.GGUFReader(tmp_path / "out" / "tiny-q4.gguf").tensors) == 27


def test_a_checkpoint_stands_for_its_conversion(models: Path, tmp_path: Path) -> None:
    result = call("export", "tiny", str(tmp_path / "out"), "--to", "safetensors", models=models)
    assert result.returncode == 0
    assert lines(result)[0] == f"qwchat: tiny is not converted: exporting its conversion, {models / 'tiny-q4'}"
    other = call("export", "raw", str(tmp_path / "other"), "--to", "safetensors", models=models)
    assert (other.returncode, lines(other)) == (
        2,
        [
            f"qwchat: error: {models / 'raw'} is not converted: run qwchat convert {models / 'raw'}, "
            "then export the converted model"
        ],
    )


def test_a_dry_run_shows_what_each_format_becomes(models: Path, tmp_path: Path) -> None:
    destination = tmp_path / "out"
    result = call("export", "tiny-q4", str(destination), "--to", "compressed-tensors", "--dry-run", models=models)
    total, _, head, *rows = result.stdout.decode().splitlines()
    assert total.startswith("77.7 kB would become ")
    assert total.endswith(f" in 1 weight file in {destination}")
    assert head.split() == ["format", "becomes", "tensors", "size"]
    assert [row.split("  ")[0] for row in rows] == ["q6", "vector", "q6", "q4"]
    assert not destination.exists()


def test_json_lists_files_with_checksums_and_tensors_with_errors(models: Path, tmp_path: Path) -> None:
    arguments = ("export", "tiny-q4", str(tmp_path / "out"), "--to", "safetensors", "--shard-size", "0.05MB", "--json")
    shown = json.loads(call(*arguments, models=models).stdout)
    sums = dict(line.split("  ")[::-1] for line in (tmp_path / "out" / "SHA256SUMS").read_text().splitlines())
    assert len(shown["files"]) > 1
    for file in shown["files"]:
        assert (file["sha256"], file["bytes"]) == (sums[file["name"]], (tmp_path / "out" / file["name"]).stat().st_size)
    assert {tensor["type"] for tensor in shown["tensors"]} == {"bf16"}
    assert all(0 <= tensor["relative_error"] < 0.004 for tensor in shown["tensors"])
    again = json.loads(call(*arguments, "--resume", models=models).stdout)
    assert again["notices"] == [f"{tmp_path / 'out'} is already complete"]
    assert again | {"notices": [], "seconds": 0} == shown | {"seconds": 0}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("tiny-q4", "{tmp}/out.gguf", "--to", "gguf"), 2, "{tmp}/out.gguf is to be a folder: leave .gguf out"),
        (("tiny-q4", "{tmp}/out", "--to", "onnx"), 2, "invalid value for '--to': 'onnx' is not one of"),
        (("tiny-q4", "{tmp}/out"), 2, "missing option '--to'"),
        (("tiny-q4", "{tmp}/out", "--to", "gguf", "--bits", "5"), 2, "5 bits are not supported; choose 4 or 8"),
        (("tiny-q4", "{tmp}/out", "--to", "gguf", "--shard-size", "big"), 2, "--shard-size is 'big': give a size such"),
        (("tiny-q4", "{tmp}/no/out", "--to", "gguf"), 2, "{tmp}/no is not a folder; create it first"),
        (("tiny-q4", "{tmp}", "--to", "gguf"), 2, "{tmp} is a folder with other files; choose another destination"),
        (("nothing", "{tmp}/out", "--to", "gguf"), 3, "there is no model 'nothing'"),
    ],
)
def test_mistakes_are_one_line(
    models: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "notes.md").write_text("mine")
    result = call("export", *(word.format(tmp=tmp_path) for word in arguments), models=models)
    assert result.returncode == code
    (line,) = lines(result)
    assert line.startswith(f"qwchat: error: {message.format(tmp=tmp_path)}")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]


def test_an_existing_export_needs_force(models: Path, tmp_path: Path) -> None:
    arguments = ("export", "tiny-q4", str(tmp_path / "out"), "--to", "safetensors")
    assert call(*arguments, models=models).returncode == 0
    (line,) = lines(call(*arguments, models=models))
    assert line == f"qwchat: error: {tmp_path / 'out'} already contains an export; use --force to replace it"
    assert call(*arguments, "--force", models=models).returncode == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("500m", 5 * 10**8),
        ("1.5 GB", 15 * 10**8),
        ("2T", 2 * 10**12),
        ("1000", 1000),
        ("7kB", 7000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "nan", "inf", "1e30", "5XB", "5GG"])
def test_texts_that_are_not_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="give a size such as 5GB or 500MB"):
        parse_size(text)
