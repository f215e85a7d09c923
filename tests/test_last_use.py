"""When models were last used: what is recorded, and what never stops a start."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from qwchat import last_use
from tests.cli.runs import call


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
    monkeypatch.setenv("QWCHAT_MODELS", str(folder))
    return folder


def test_a_use_is_recorded_until_the_model_goes(models: Path) -> None:
    assert last_use.last_use(models / "one") is None
    last_use.record_use(models / "one")
    recorded = last_use.last_use(models / "one")
    assert recorded is not None
    os.utime(models / ".last-used/one", (1e9, 1e9))
    assert last_use.last_use(models / "one") == datetime.fromtimestamp(1e9, UTC)
    last_use.record_use(models / "one")
    again = last_use.last_use(models / "one")
    assert again is not None
    later = models / "later"
    later.touch()
    assert recorded <= again <= datetime.fromtimestamp(later.stat().st_mtime, UTC)
    assert recorded > datetime.fromtimestamp(1e9, UTC)
    assert last_use.last_use(models / "two") is None
    last_use.forget_use(models / "one")
    assert last_use.last_use(models / "one") is None


def test_a_link_to_the_models_folder_is_the_same_folder(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = models.with_name("link")
    link.symlink_to(models)
    last_use.record_use(link / "one")
    assert last_use.last_use(models / "one") is not None


def test_models_elsewhere_are_not_recorded(models: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    last_use.record_use(tmp_path / "elsewhere")
    assert last_use.last_use(tmp_path / "elsewhere") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "models"]
    assert not (models / ".last-used").exists()


@pytest.mark.parametrize("kind", ["file for folder", "folder", "pipe", "link"])
def test_what_cannot_be_written_is_left_out(models: Path, tmp_path: Path, kind: str) -> None:
    record, target = models / ".last-used/one", tmp_path / "target"
    if kind == "file for folder":
        record.parent.touch()
    else:
        record.parent.mkdir()
        {"folder": record.mkdir, "pipe": lambda: os.mkfifo(record), "link": lambda: record.symlink_to(target)}[kind]()
    last_use.record_use(models / "one")
    assert last_use.last_use(models / "one") is None
    assert not target.exists()


def test_an_impossible_disk_is_no_error(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*unused: object, **options: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(last_use.os, "open", refuse)
    last_use.record_use(models / "one")
    assert last_use.last_use(models / "one") is None


def test_list_shows_it(models: Path) -> None:
    (models / "one/manifest.json").write_text("{}")
    last_use.record_use(models / "one")
    os.utime(models / ".last-used/one", (1.75e9, 1.75e9))
    listed = {model["name"]: model for model in json.loads(call("list", "--json", models=models).stdout)["models"]}
    assert listed["one"]["last_used"] == "2025-06-15T15:06:40+00:00"
    assert listed["mini"]["last_used"] is None
    assert ".last-used" not in listed
    assert "2025-06-15 " in call("list", models=models).stdout.decode()
