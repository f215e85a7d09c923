"""The built-in model, converted once for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import qwchat
from quant import convert
from qwchat.models_folder import embedded_checkpoint
from tests.server.serving import Serving, serving


@pytest.fixture(scope="session")
def mini_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "mini-q4"
    list(convert(embedded_checkpoint(), folder))
    return folder


@pytest.fixture(scope="module")
def mini(mini_folder: Path) -> Iterator[qwchat.Model]:
    with qwchat.load(mini_folder, threads=1, context=512) as model:
        yield model


@pytest.fixture(scope="module")
def served(mini: qwchat.Model) -> Iterator[Serving]:
    with serving(mini) as running:
        yield running
