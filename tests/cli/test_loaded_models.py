"""The open model of a chat and the next one: what a failure to open it leaves behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from quant.errors import ContainerError
from qwchat import models_folder
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.loaded_models import LoadedModels
from qwchat.cli.reply_models import LocalReplyModel
from qwchat.cli.streams import Streams
from qwchat.errors import ModelError, NotEnoughMemoryError, QwchatError, UsageError
from qwchat.settings.resolve import Settings
from tests.chat.fakes import FakeModel


class Loader:
    """Opens a scripted model, or fails."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self.opened: list[FakeModel] = []

    def __call__(self, path: Path, **settings: object) -> FakeModel:
        if isinstance(self.failure, KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        if self.failure is not None:
            raise self.failure
        self.opened.append(FakeModel(name=path.name, fingerprint=path.name))
        return self.opened[-1]


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def models(loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModels:
    monkeypatch.setenv("QWCHAT_MODELS", str(tmp_path))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    located = models_folder.locate("one")
    dependencies = Dependencies(load=loader, compiled=lambda: True)
    return LoadedModels(LocalReplyModel(located, loader(located.path)), dependencies, Streams(quiet=True))  # type: ignore[arg-type]


def test_the_next_model_replaces_the_first_only_when_it_is_kept(models: LoadedModels, loader: Loader) -> None:
    assert models.open("one", Settings()) is None
    opened = models.open("two", Settings())
    assert opened is not None
    models.discard(opened)
    first, second = loader.opened
    assert (first.closed, second.closed) == (False, True)
    opened = models.open("two", Settings())
    assert opened is not None
    models.keep(opened)
    assert (first.closed, loader.opened[2].closed) == (True, False)
    assert [(choice.name, choice.current) for choice in models.choices()] == [
        ("mini", False),
        ("one", False),
        ("two", True),
    ]
    models.close()
    assert loader.opened[2].closed


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (ContainerError("manifest.json is damaged"), ModelError, "manifest.json is damaged"),
        (UsageError("no such device"), UsageError, "no such device"),
        (MemoryError(), NotEnoughMemoryError, "out of memory; or leave the chat and start qwchat -c -m two"),
        (NotEnoughMemoryError("it needs 9 GB"), NotEnoughMemoryError, "it needs 9 GB; or leave the chat and start "),
        (KeyboardInterrupt(), UsageError, "stopped opening two; one stays the model of this chat"),
    ],
)
def test_a_failure_leaves_the_first_model(
    models: LoadedModels, loader: Loader, failure: BaseException, error: type[QwchatError], message: str
) -> None:
    before, loader.failure = signal.getsignal(signal.SIGINT), failure
    with pytest.raises(error, match=message):
        models.open("two", Settings())
    assert signal.getsignal(signal.SIGINT) is before
    assert not loader.opened[0].closed
    assert models.model.opened.model is loader.opened[0]


def test_names_that_lead_nowhere(models: LoadedModels) -> None:
    for name, message in (
        ("three", "there is no model 'three'"),
        ("../one/..", "there is no file or folder"),
        ("", "there is"),
    ):
        with pytest.raises(ModelError, match=message):
            models.open(name, Settings())


def test_a_current_model_elsewhere_is_listed_by_its_path(loader: Loader, models: LoadedModels, tmp_path: Path) -> None:
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere/one"
    elsewhere.mkdir(parents=True)
    (elsewhere / "manifest.json").write_text("{}")
    located = models_folder.locate(str(elsewhere))
    dependencies = Dependencies(load=loader, compiled=lambda: True)
    here = LoadedModels(LocalReplyModel(located, loader(located.path)), dependencies, Streams(quiet=True))  # type: ignore[arg-type]
    assert [(choice.name, choice.current) for choice in here.choices()] == [
        (str(elsewhere), True),
        ("mini", False),
        ("one", False),
        ("two", False),
    ]
