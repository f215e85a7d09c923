"""Tokenizers of these tests: a tiny one, and that of Qwen2 if it is beside the checkout."""

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
    """Return a tokenizer built from its file, or loaded from the tables that an earlier start cached."""
    if request.param == "built":
        return Tokenizer.from_folder(folder)
    cache = tmp_path_factory.mktemp("tables")
    Tokenizer.from_folder(folder, cache)
    return Tokenizer.from_folder(folder, cache)


@pytest.fixture(scope="session")
def library(folder: Path) -> tokenizers.Tokenizer:
    """Return the library's tokenizer for the whole file, which recognises control tokens in any text."""
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def plain_library(folder: Path) -> tokenizers.Tokenizer:
    """Return the library's tokenizer, configured to treat control tokens in text as text."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer
