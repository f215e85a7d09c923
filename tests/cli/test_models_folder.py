"""Names and paths of models."""

from __future__ import annotations

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
        ("zzz", "there is no model 'zzz': choose from Qwen2-7B, half-q4, mini, or give the folder of a model or a"),
        ("./zzz", "there is no folder ./zzz: give the folder of a model or a checkpoint, or a name from qwchat list"),
        ("models/recipe", "models/recipe is neither a converted model \\(manifest.json\\) nor a checkpoint"),
        ("", "there is no model '': choose from Qwen2-7B, half-q4, mini, or give the folder of a model or a"),
        ("gguf/model.gguf", "gguf/model.gguf is a GGUF file, which is not supported yet: give the folder"),
        ("gguf/config.json", "gguf/config.json is a file: give the folder of a model or a checkpoint"),
        ("./gguf", "gguf contains GGUF files, which are not supported yet: give the original checkpoint"),
    ],
)
def test_missing_models(home: Path, wanted: str, message: str) -> None:
    (home.parent / "gguf").mkdir()
    for name in ("model.gguf", "config.json"):
        (home.parent / "gguf" / name).touch()
    with pytest.raises(ModelError, match=message):
        locate(wanted)


def test_available_models(home: Path) -> None:
    make_model(home / ".mini-q4.partial")
    assert [(model.name, model.converted, model.embedded) for model in available()] == [
        ("Qwen2-7B", False, False),
        ("half-q4", True, False),
        ("mini", False, True),
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
