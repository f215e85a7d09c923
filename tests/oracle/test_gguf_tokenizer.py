"""Tokenizer files that are made of GGUF metadata, read by transformers: the ids of the published tokenizer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from quant.sources.gguf.tokenizer_files import tokenizer_files
from qwchat.text.tokenizer import Tokenizer
from tests.quant.sources.gguf.vocabularies import published_values, r1_metadata, tokenizer_metadata
from tests.text.test_tokenizer import PHRASES, SCRIPTS
from tests.text.thinking_templates import R1_TOKENS

transformers = pytest.importorskip("transformers")


def texts() -> list[str]:
    dice = random.Random(15)
    return [*PHRASES, *("".join(dice.choices(SCRIPTS, k=dice.randrange(1, 200))) for _ in range(100))]


def write_files(metadata: dict[str, Any], folder: Path) -> Path:
    for name, data in tokenizer_files(metadata, "model.gguf").items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def base(shared_qwen2: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((shared_qwen2 / "7b-instruct" / "tokenizer.json").read_bytes())
    return values


@pytest.mark.parametrize("model", ["qwen2", "qwen3"])
def test_ids_and_texts_equal_those_of_the_published_files(
    base: dict[str, Any], shared_qwen2: Path, tmp_path: Path, model: str
) -> None:
    folder = write_files(tokenizer_metadata(published_values(base, model), 151_936), tmp_path)
    read = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_folder(folder)
    reference = transformers.AutoTokenizer.from_pretrained(shared_qwen2 / "7b-instruct")
    assert read.get_added_vocab() == ours.special_ids
    for text in texts():
        ids = reference(text)["input_ids"]
        assert read(text)["input_ids"] == ids == ours.encode(text)
        assert read.decode(ids, clean_up_tokenization_spaces=False) == ours.decode(ids)
    assert read.eos_token == "<|im_end|>"


def test_the_bos_token_of_r1_begins_each_text(base: dict[str, Any], tmp_path: Path) -> None:
    folder = write_files(r1_metadata(base, 151_936), tmp_path)
    read = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_folder(folder)
    assert (read.bos_token, read.eos_token, read.pad_token) == (R1_TOKENS[3], R1_TOKENS[0], R1_TOKENS[0])
    for text in texts():
        assert read(text)["input_ids"] == [151_646, *ours.encode(text)]
        assert read(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    spoken = f"{R1_TOKENS[1]}hello{R1_TOKENS[2]}{R1_TOKENS[5]}"
    ids = [151_644, *ours.encode("hello"), 151_645, 151_648]
    assert read(spoken, add_special_tokens=False)["input_ids"] == ids
    assert read.decode([*ids, 151_643], skip_special_tokens=True) == spoken
