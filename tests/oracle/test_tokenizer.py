"""Token ids and texts, compared with transformers' Qwen2 tokenizer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from qwchat.text.tokenizer import Tokenizer
from tests.text.test_tokenizer import PHRASES, SCRIPTS

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def reference(shared_qwen2: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(shared_qwen2 / "7b-instruct")


@pytest.fixture(scope="module")
def tokenizer(shared_qwen2: Path) -> Tokenizer:
    return Tokenizer.from_folder(shared_qwen2 / "7b-instruct")


def test_ids_and_texts_equal_the_reference(reference: Any, tokenizer: Tokenizer) -> None:
    dice = random.Random(5)
    texts = [*PHRASES, *("".join(dice.choices(SCRIPTS, k=dice.randrange(1, 200))) for _ in range(200))]
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == reference(text)["input_ids"]
        assert tokenizer.decode(ids) == reference.decode(ids, clean_up_tokenization_spaces=False)


def test_any_ids_decode_as_the_reference_does(reference: Any, tokenizer: Tokenizer) -> None:
    dice = random.Random(6)
    for _ in range(300):
        ids = dice.choices(range(151_643 if dice.random() < 0.5 else 256), k=40)
        assert tokenizer.decode(ids) == reference.decode(ids, clean_up_tokenization_spaces=False)


def test_special_tokens_equal_the_reference(reference: Any, tokenizer: Tokenizer) -> None:
    assert tokenizer.special_ids == reference.get_added_vocab()
    assert tokenizer.vocab_size == len(reference)
