"""Names and paths of models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qwchat import models_folder
from qwchat.errors import ModelError
from qwchat.models_folder import LocatedModel, available, locate


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a models folder with one model and one checkpoint, and a built-in checkpoint elsewhere."""
    folder = tmp_path / "models"
    monkeypatch.setenv("QWCHAT_MODELS", str(folder))
    monkeypatch.setattr(models_folder, "embedded_checkpoint", lambda: tmp_path / "package" / "mini")
    monkeypatch.chdir(tmp_path)
    make_model(folder / "half-q4")
    make_checkpoint(folder / "Qwen2-7B")
    make_checkpoint(tmp_path / "package" / "mini")
    (folder / "recipe").mkdir()
    return folder


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    return folder


def make_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_the_default_is_the_built_in_model(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = locate(None)
    assert found == LocatedModel("mini", home.parent / "package" / "mini", converted=False, embedded=True)
    assert found.destination == home / "mini-q4"
    monkeypatch.setenv("QWCHAT_MODEL", "half-q4")
    assert locate(None).name == "half-q4"
    assert locate("mini").name == "mini"


def test_a_name_is_looked_up_in_the_models_folder_first(home: Path) -> None:
    make_model(home.parent / "half-q4")
    make_model(home.parent / "elsewhere")
    assert locate("half-q4").path == home / "half-q4"
    assert locate("./half-q4").path == Path("half-q4")
    assert locate("elsewhere").path == Path("elsewhere")
    assert locate("Qwen2-7B") == LocatedModel("Qwen2-7B", home / "Qwen2-7B", converted=False)


def test_paths(home: Path) -> None:
    snapshot = make_checkpoint(home.parent / "hub" / "models--Qwen--Qwen2-7B-Instruct" / "snapshots" / "f2826a00")
    found = locate(str(snapshot))
    assert (found.name, found.destination) == ("Qwen2-7B-Instruct", home / "Qwen2-7B-Instruct-q4")
    assert locate(str(home / "half-q4")).converted
    assert locate(f"{home}/half-q4/").name == "half-q4"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("half", "there is no model 'half': did you mean half-q4\\?"),
        ("zzz", "there is no model 'zzz': choose from Qwen2-7B, half-q4, mini, or give the path of a model, a"),
        (
            "./zzz",
            "there is no file or folder ./zzz: give a model, a checkpoint, a GGUF file, or a name from qwchat",
        ),
        ("models/recipe", "models/recipe is neither a converted model \\(manifest.json\\) nor a checkpoint"),
        ("", "there is no model '': choose from Qwen2-7B, half-q4, mini, or give the path of a model, a"),
        ("gguf/config.json", "gguf/config.json is not a GGUF file: give one, or the folder of a model or a checkpoint"),
        ("gguf/pipe.gguf", "gguf/pipe.gguf is not a GGUF file"),
        ("gguf/dangling.gguf", "there is no file or folder gguf/dangling.gguf"),
        ("gguf/missing.gguf", "there is no file or folder gguf/missing.gguf"),
        (f"gguf/{'x' * 5000}.gguf", "there is no file or folder gguf/x{195}….*: give"),
        ("./gguf", "gguf contains 2 GGUF models \\(other.gguf, split-00001-of-00002.gguf\\); give one of the files"),
    ],
)
def test_missing_models(home: Path, wanted: str, message: str) -> None:
    folder = home.parent / "gguf"
    folder.mkdir()
    for name in ("other.gguf", "split-00001-of-00002.gguf", "split-00002-of-00002.gguf", "config.json"):
        (folder / name).touch()
    os.mkfifo(folder / "pipe.gguf")
    (folder / "dangling.gguf").symlink_to("nowhere")
    with pytest.raises(ModelError, match=message):
        locate(wanted)


def test_gguf_models(home: Path) -> None:
    folder = home.parent / "files"
    folder.mkdir()
    parts = [folder / f"tiny-q4_0-0000{number}-of-00002.gguf" for number in (1, 2)]
    for path in (*parts, home / "here.GGUF"):
        path.touch()
    expected = LocatedModel("tiny-q4_0-00001-of-00002.gguf", parts[0], converted=False)
    for text in (*map(str, parts), str(folder), "./files", "files"):
        found = locate(text)
        assert (found.name, found.kind) == (expected.name, "GGUF file")
        assert found.path.samefile(parts[0])
        assert [path.name for path in found.files] == [path.name for path in parts]
        assert found.destination == home / "tiny-q4_0-imported"
    assert locate("here.GGUF") == LocatedModel("here.GGUF", home / "here.GGUF", converted=False)
    assert locate("here.GGUF").conversion_folder(quantised=False) == home / "here-q4"
    make_model(home / "here-q4")
    assert locate("here.GGUF").destination == home / "here-q4"


def test_a_converted_model_beside_gguf_files_comes_first(home: Path) -> None:
    (home / "half-q4" / "model.gguf").touch()
    (home / "Qwen2-7B" / "model.gguf").touch()
    assert locate(str(home / "half-q4")).converted
    assert locate(str(home / "Qwen2-7B")).kind == "checkpoint"


def test_a_quantised_checkpoint_has_a_conversion_of_another_name(home: Path) -> None:
    path = home / "Qwen2-7B"
    (path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    assert locate("Qwen2-7B").destination == home / "Qwen2-7B-imported"
    make_model(home / "Qwen2-7B-q4")
    assert locate("Qwen2-7B").destination == home / "Qwen2-7B-q4"
    make_model(home / "Qwen2-7B-imported")
    assert locate("Qwen2-7B").destination == home / "Qwen2-7B-imported"
    (path / "config.json").write_text("not JSON")
    assert locate("Qwen2-7B").destination == home / "Qwen2-7B-q4"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("..evil.gguf", "evil"),
        ("a\nb\x1b[31m.gguf", "a_b_[31m"),
        ("back\\slash.gguf", "back_slash"),
        (f"{'é' * 100}.gguf", "é" * 80),
        ("....gguf", "model"),
        ("Modell mit Leerzeichen.gguf", "Modell mit Leerzeichen"),
    ],
)
def test_names_of_conversions_are_names_of_folders(home: Path, file: str, name: str) -> None:
    (home.parent / file).touch()
    found = locate(str(home.parent / file))
    assert found.destination == home / f"{name}-imported"
    (home / f".{name}-imported.partial").mkdir()


def test_available_models(home: Path) -> None:
    make_model(home / ".mini-q4.partial")
    for name in ("x-00001-of-00002.gguf", "x-00002-of-00002.gguf", ".hidden.gguf", "half-q4.gguf"):
        (home / name).touch()
    assert [(model.name, model.converted, model.embedded) for model in available()] == [
        ("Qwen2-7B", False, False),
        ("half-q4", True, False),
        ("half-q4.gguf", False, False),
        ("mini", False, True),
        ("x-00001-of-00002.gguf", False, False),
    ]


def test_location_of_the_models_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QWCHAT_MODELS", "~/m")
    assert models_folder.models_folder() == Path("~/m").expanduser()
    monkeypatch.delenv("QWCHAT_MODELS")
    monkeypatch.setattr(models_folder, "source_checkout", lambda: tmp_path)
    assert models_folder.models_folder() == tmp_path / "models"
    monkeypatch.setattr(models_folder, "source_checkout", lambda: None)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert models_folder.models_folder() == tmp_path / "qwchat" / "models"
