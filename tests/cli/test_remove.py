"""`qwchat rm`: what it removes, what it refuses, and that it asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.runs import call


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").write_text("{}")
        (folder / name / "weights.bin").write_bytes(b"weights")
    return folder


def names(models: Path) -> set[str]:
    return {path.name for path in models.iterdir()} - {"home", "mini"}


def test_removes_what_was_named(models: Path) -> None:
    (models / ".last-used").mkdir()
    (models / ".last-used/one").touch()
    result = call("rm", "one", "--yes", models=models)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"qwchat: removed one\n")
    assert names(models) == {"two", ".last-used"}
    assert list((models / ".last-used").iterdir()) == []
    (models / ".last-used").rmdir()
    assert call("rm", "two", "two", "-y", "-q", models=models).stderr == b""
    assert names(models) == set()


def test_without_a_terminal_nothing_is_removed_unasked(models: Path) -> None:
    result = call("rm", "one", models=models)
    assert (result.returncode, names(models)) == (2, {"one", "two"})
    assert b"give --yes to remove without asking" in result.stderr


@pytest.mark.parametrize(
    ("argument", "code", "message"),
    [
        ("three", 3, "there is no model 'three'"),
        ("../models/..", 3, "there is no file or folder ../models/.."),
        ("{elsewhere}", 2, "is not in"),
        ("{link}", 2, "is not in"),
    ],
)
def test_refusals(models: Path, tmp_path: Path, argument: str, code: int, message: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "manifest.json").write_text("{}")
    link = models / "link"
    link.symlink_to(elsewhere)
    result = call("rm", "one", argument.format(elsewhere=elsewhere, link=link), "--yes", models=models)
    assert result.returncode == code
    assert message in result.stderr.decode()
    assert names(models) == {"one", "two", "link"}
    assert (elsewhere / "manifest.json").exists()


def test_a_model_in_use_stays_readable(models: Path) -> None:
    with (models / "one/weights.bin").open("rb") as file:
        assert call("rm", "one", "--yes", models=models).returncode == 0
        assert file.read() == b"weights"
    assert not (models / "one").exists()
