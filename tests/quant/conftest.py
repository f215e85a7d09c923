"""A tiny checkpoint and its uninterrupted conversion, created once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.quant.checkpoints import make_checkpoint
from tests.quant.converting import content, run


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny bf16 checkpoint of two shards."""
    return make_checkpoint(tmp_path_factory.mktemp("source") / "tiny", shards=2)


@pytest.fixture(scope="session")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of an uninterrupted q4 conversion of `source`."""
    folder = tmp_path_factory.mktemp("expected")
    run(source, folder / "model")
    return content(folder / "model")
