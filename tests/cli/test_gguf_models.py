"""GGUF files as MODEL: converted on first use, shown, listed, estimated, verified and removed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from quant.native.object_store import cache_root
from qwchat.errors import ModelError
from qwchat.models_folder import converted_folder
from tests.cli.runs import call
from tests.gguf_models import write_gguf
from tests.quant.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the same checkpoint in several types."""
    folder = tmp_path_factory.mktemp("gguf")
    checkpoint = make_checkpoint(folder / "Tiny")
    write_gguf(checkpoint, folder / "tiny-q8_0.gguf")
    write_gguf(checkpoint, folder / "tiny-q4_0.gguf", "Q4_0")
    write_gguf(checkpoint, folder / "tiny-bf16.gguf", "BF16")
    write_gguf(checkpoint, folder / "tiny-q4_1.gguf", "Q4_1")
    (folder / "split").mkdir()
    write_gguf(checkpoint, folder / "split" / "tiny.gguf", "Q4_0", parts=2)
    return folder


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWCHAT_CACHE", str(cache_root()))  # The compiled code of all tests.
    return tmp_path / "models"


def shown(*arguments: str, models: Path) -> Any:
    """Run a command with --json and return its data."""
    result = call(*arguments, "--json", models=models)
    assert result.returncode == 0, result.stderr.decode()
    return json.loads(result.stdout)


def test_a_file_is_converted_on_first_use_and_again_after_a_change(made: Path, models: Path) -> None:
    file = models.parent / "tiny.gguf"
    shutil.copyfile(made / "tiny-q8_0.gguf", file)
    first = call("-p", "hi", "-m", str(file), models=models)
    assert first.returncode == 0, first.stderr.decode()
    assert f"qwchat: converting tiny.gguf into {models}/tiny-imported (first use)" in first.stderr.decode()
    manifest = json.loads((models / "tiny-imported" / "manifest.json").read_text())
    assert (manifest["settings"]["preset"], manifest["source"]["name"]) == ("imported", "tiny.gguf")
    os.utime(file, (1, 1))
    assert b"converting" not in call("-p", "hi", "-m", str(file), models=models).stderr
    shutil.copyfile(made / "tiny-q4_0.gguf", file)
    again = call("-p", "hi", "-m", str(file), models=models)
    assert again.returncode == 0, again.stderr.decode()
    assert "(the GGUF file has changed)" in again.stderr.decode()
    formats = {entry["format"] for entry in shown("show", "tiny-imported", models=models)["tensors"]}
    assert formats == {"lin4", "vector"}


def test_unquantised_files_get_the_preset_of_checkpoints(made: Path, models: Path) -> None:
    assert call("-p", "hi", "-m", str(made / "tiny-bf16.gguf"), models=models).returncode == 0
    assert (models / "tiny-bf16-q4" / "manifest.json").is_file()
    assert shown("show", str(made / "tiny-bf16.gguf"), models=models)["preset"] == "q4"


def test_any_part_and_the_folder_stand_for_a_split_model(made: Path, models: Path) -> None:
    folder = made / "split"
    for path in (folder / "tiny-00002-of-00002.gguf", folder / "tiny-00001-of-00002.gguf", folder):
        result = call("-p", "hi", "-m", str(path), models=models)
        assert result.returncode == 0, result.stderr.decode()
    assert sorted(path.name for path in models.glob("tiny*")) == ["tiny-imported"]
    plain = call("convert", str(made / "tiny-q4_0.gguf"), models=models)
    assert plain.stdout.decode() == f"{models / 'tiny-q4_0-imported'}\n"
    for name in ("weights.bin", "config.json", "tokenizer.json"):
        assert (models / "tiny-imported" / name).read_bytes() == (models / "tiny-q4_0-imported" / name).read_bytes()


def test_a_missing_part_is_named(made: Path, models: Path) -> None:
    models.mkdir()
    shutil.copyfile(made / "split" / "tiny-00001-of-00002.gguf", models.parent / "tiny-00001-of-00002.gguf")
    result = call("-p", "hi", "-m", str(models.parent / "tiny-00001-of-00002.gguf"), models=models)
    assert result.returncode == 3
    assert "tiny-00002-of-00002.gguf" in result.stderr.decode()
    assert result.stderr.count(b"\n") == 1


def test_a_folder_with_several_models_is_refused(made: Path, models: Path) -> None:
    for command in (("-p", "hi", "-m"), ("show",), ("verify",), ("estimate",), ("bench",), ("convert",)):
        result = call(*command, str(made), models=models)
        assert result.returncode == 3, command
        assert (
            "4 GGUF models (tiny-bf16.gguf, tiny-q4_0.gguf, tiny-q4_1.gguf, tiny-q8_0.gguf)" in result.stderr.decode()
        )


def test_show_before_and_after_the_conversion(made: Path, models: Path) -> None:
    file = made / "tiny-q4_0.gguf"
    before = shown("show", str(file), models=models)
    assert (before["name"], before["converted"], before["path"]) == (file.name, False, str(file))
    assert before["files"] == {file.name: file.stat().st_size}
    assert {tensor["format"] for tensor in before["tensors"]} == {"q4_0", "f32"}
    assert "tiny-q4_0.gguf (GGUF file, not converted yet)" in call("show", str(file), models=models).stdout.decode()
    assert call("convert", str(file), models=models).returncode == 0
    after = shown("show", str(file), models=models)
    assert (after["name"], after["preset"]) == ("tiny-q4_0-imported", "imported")


def test_files_in_the_models_folder_are_listed_and_removed(made: Path, models: Path) -> None:
    models.mkdir()
    for path in (made / "split").iterdir():
        shutil.copyfile(path, models / path.name)
    name = "tiny-00001-of-00002.gguf"
    entries = {entry["name"]: entry for entry in shown("list", models=models)["models"]}
    assert entries[name]["bytes"] == sum(path.stat().st_size for path in (made / "split").iterdir())
    assert (entries[name]["family"], entries[name]["remark"]) == ("qwen2", "GGUF file, converted on first use")
    assert call("-p", "hi", "-m", name, models=models).returncode == 0
    entries = {entry["name"]: entry for entry in shown("list", models=models)["models"]}
    assert entries[name]["remark"] == "GGUF file, converted to tiny-imported"
    result = call("rm", name, "--yes", models=models)
    assert (result.returncode, result.stderr.decode()) == (0, f"qwchat: removed {name}\n")
    assert [path.name for path in models.glob("tiny*")] == ["tiny-imported"]


def test_a_damaged_file_is_listed(models: Path) -> None:
    models.mkdir()
    (models / "bad.gguf").write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 100)
    entries = {entry["name"]: entry for entry in shown("list", models=models)["models"]}
    assert (entries["bad.gguf"]["bytes"], entries["bad.gguf"]["family"]) == (108, None)
    result = call("-p", "hi", "-m", "bad.gguf", models=models)
    assert (result.returncode, result.stderr.count(b"\n")) == (3, 1)


def test_estimates_come_from_the_header(made: Path, models: Path) -> None:
    data = shown("estimate", str(made / "tiny-q4_0.gguf"), models=models)
    presets = list(dict.fromkeys(entry["preset"] for entry in data["estimates"]))
    assert presets[0] == "imported"
    assert "q4" in presets
    weights = {entry["preset"]: entry["weights"] for entry in data["estimates"]}
    assert call("convert", str(made / "tiny-q4_0.gguf"), models=models).returncode == 0
    assert weights["imported"] == (models / "tiny-q4_0-imported" / "weights.bin").stat().st_size
    only = shown("estimate", str(made / "tiny-q4_0.gguf"), "--preset", "q8", models=models)
    assert {entry["preset"] for entry in only["estimates"]} == {"q8"}
    assert all(entry["gpu"] for entry in data["estimates"])
    plain = shown("estimate", str(made / "tiny-bf16.gguf"), models=models)
    assert "imported" not in {entry["preset"] for entry in plain["estimates"]}


def test_estimates_of_formats_that_need_the_cpu(made: Path, models: Path) -> None:
    data = shown("estimate", str(made / "tiny-q4_1.gguf"), models=models)
    assert {entry["preset"] for entry in data["estimates"] if entry["gpu"] is None} == {"imported"}
    table = call("estimate", str(made / "tiny-q4_1.gguf"), models=models).stdout.decode()
    assert table.count("\nimported ") == 1
    assert call("convert", str(made / "tiny-q4_1.gguf"), models=models).returncode == 0
    table = call("estimate", "tiny-q4_1-imported", models=models).stdout.decode()
    assert "A GPU cannot run it: some of its formats need the CPU." in table


def test_conversions_by_command(made: Path, models: Path) -> None:
    file = made / "tiny-q4_0.gguf"
    plan = shown("convert", str(file), "--dry-run", models=models)
    assert (plan["preset"], plan["path"]) == ("imported", str(models / "tiny-q4_0-imported"))
    assert {tensor["format"] for tensor in plan["tensors"]} == {"lin4", "vector"}
    assert not (models / "tiny-q4_0-imported").exists()
    again = shown("convert", str(file), "--preset", "q8", models=models)
    assert (again["preset"], again["path"]) == ("q8", str(models / "tiny-q4_0-q8"))
    assert {tensor["format"] for tensor in again["tensors"]} == {"q8", "vector"}


def test_verify_checks_the_conversion(made: Path, models: Path) -> None:
    file = made / "tiny-q4_0.gguf"
    result = call("verify", str(file), models=models)
    assert result.returncode == 2
    assert f"{file} is a GGUF file without checksums: convert it with qwchat convert {file}" in result.stderr.decode()
    assert call("convert", str(file), models=models).returncode == 0
    result = call("verify", str(file), models=models)
    assert result.returncode == 0
    assert b"tiny-q4_0.gguf is a GGUF file: checking its conversion" in result.stderr
    with (models / "tiny-q4_0-imported" / "weights.bin").open("r+b") as weights:
        weights.seek(1000)
        weights.write(b"\xff\x00\xff")
    result = call("verify", str(file), models=models)
    assert result.returncode == 3
    assert "where SOURCE is the path of the GGUF file tiny-q4_0.gguf" in result.stderr.decode()


def test_the_library_names_the_command_that_converts(made: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWCHAT_MODELS", str(models))
    with pytest.raises(ModelError, match="is a GGUF file that has not been converted: run `qwchat convert "):
        converted_folder(str(made / "tiny-q8_0.gguf"))
    assert call("convert", str(made / "tiny-q8_0.gguf"), models=models).returncode == 0
    assert converted_folder(str(made / "tiny-q8_0.gguf")) == models / "tiny-q8_0-imported"
