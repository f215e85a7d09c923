"""Models for constrained replies: the embedded one, and one with random weights and its tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import qwchat
from quant import convert
from tests.conftest import REPOSITORY
from tests.quant.checkpoints import make_checkpoint

MINI = REPOSITORY / "models" / "mini"


def random_checkpoint(folder: Path) -> Path:
    """Write a checkpoint with random weights and the tokenizer of mini."""
    config = json.loads((MINI / "config.json").read_text("utf-8"))
    shapes = {"hidden_size": 128, "max_position_embeddings": 512, "vocab_size": config["vocab_size"]}
    make_checkpoint(folder, config_overrides={**shapes, "eos_token_id": config["eos_token_id"]})
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "generation_config.json"):
        shutil.copy(MINI / name, folder / name)
    return folder


@pytest.fixture(scope="package", params=["mini", "random"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[qwchat.Model]:
    folder = tmp_path_factory.mktemp("constrained")
    source = MINI if request.param == "mini" else random_checkpoint(folder / "checkpoint")
    list(convert(source, folder / "model"))
    with qwchat.load(folder / "model", threads=2, context=512) as loaded:
        yield loaded
