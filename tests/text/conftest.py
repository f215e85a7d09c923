"""The two tokenizers of these tests: a tiny one, and Qwen2's own where it is beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers

from qwchat.text.tokenizer import Tokenizer
from tests.text.tiny import write_tokenizer


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(tiny_folder)


@pytest.fixture(scope="session")
def qwen2_folder(shared_qwen2: Path) -> Path:
    return shared_qwen2 / "7b-instruct"


@pytest.fixture(scope="session")
def qwen2(qwen2_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(qwen2_folder)


@pytest.fixture(scope="session", params=["tiny", "qwen2"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(f"{request.param}_folder")
    return path


@pytest.fixture(scope="session", params=["built", "kept"])
def tokenizer(folder: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """As it is built from its file, and as it comes from the tables that a start before has kept."""
    if request.param == "built":
        return Tokenizer.from_folder(folder)
    cache = tmp_path_factory.mktemp("tables")
    Tokenizer.from_folder(folder, cache)
    return Tokenizer.from_folder(folder, cache)


@pytest.fixture(scope="session")
def library(folder: Path) -> tokenizers.Tokenizer:
    """The library itself on the whole file: it makes control tokens of whatever looks like one."""
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def plain_library(folder: Path) -> tokenizers.Tokenizer:
    """The library told to leave control tokens in text alone."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer
