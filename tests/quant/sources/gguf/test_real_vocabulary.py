"""A model whose GGUF file holds the vocabulary of Qwen2 has the prompts of the published tokenizer and template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import qwchat
from quant import convert
from qwchat.messages import Message
from qwchat.request import PromptOptions
from qwchat.text.template import ChatTemplate
from qwchat.text.template.encoding import encode_chat
from qwchat.text.tokenizer import Tokenizer
from tests.quant.sources.gguf.files import Typed
from tests.quant.sources.gguf.models import write_model
from tests.quant.sources.gguf.vocabularies import published_values, r1_metadata, tokenizer_metadata
from tests.text.test_tokenizer import PHRASES
from tests.text.thinking_templates import QWEN3, R1, R1_TOKENS

ROWS = 151_936
CHATS: tuple[list[Message], ...] = (
    [{"role": "user", "content": "hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<|im_end|> is text, <｜User｜> too"}],
    [
        {"role": "user", "content": "\n".join(PHRASES)},
        {"role": "assistant", "content": "漢字, naïve 👍"},
        {"role": "user", "content": "And 1 + 1?"},
    ],
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(shared_qwen2: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((shared_qwen2 / "7b-instruct" / "tokenizer.json").read_bytes())
    return values


def model_of(folder: Path, metadata: Mapping[str, Any], template: str) -> Path:
    """Return the conversion of a GGUF file of a tiny model with this tokenizer and template."""
    tokens = {**metadata, "tokenizer.chat_template": template}
    tokens["tokenizer.ggml.token_type"] = Typed(5, tokens["tokenizer.ggml.token_type"])
    config = {"vocab_size": ROWS, "tie_word_embeddings": True, "max_position_embeddings": 4096}
    write_model(folder / "tiny.gguf", config_overrides=config, metadata=tokens)
    list(convert(folder / "tiny.gguf", folder / "model"))
    return folder / "model"


def test_prompts_of_qwen2_equal_those_of_the_published_files(
    base: dict[str, Any], shared_qwen2: Path, tmp_path: Path
) -> None:
    published = shared_qwen2 / "7b-instruct"
    tokenizer, template = Tokenizer.from_folder(published), ChatTemplate.from_folder(published)
    folder = model_of(tmp_path, tokenizer_metadata(base, ROWS), template.source)
    with qwchat.load(folder, threads=1) as model:
        for messages in CHATS:
            assert list(model.prompt(messages).ids) == encode_chat(tokenizer, template, messages)
        assert model.tokenizer.vocab_size == 151_646
        assert model.stop_ids == {151_645, 151_643}


def test_prompts_of_r1_begin_with_its_bos_token_and_open_a_thought(base: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(published_values(base, "r1")))
    tokenizer, template = Tokenizer.from_folder(tmp_path), ChatTemplate(R1, tokens={"bos_token": R1_TOKENS[3]})
    folder = model_of(tmp_path, r1_metadata(base, ROWS), R1)
    with qwchat.load(folder, threads=1) as model:
        for messages in CHATS:
            prompt = model.prompt(messages)
            assert list(prompt.ids) == encode_chat(tokenizer, template, messages)
            assert (prompt.ids[0], list(prompt.ids).count(151_646), prompt.reasoning) == (151_646, 1, "open")
        assert model.stop_ids == {151_643}


def test_the_think_tags_of_qwen3_are_found(base: dict[str, Any], tmp_path: Path) -> None:
    folder = model_of(tmp_path, tokenizer_metadata(published_values(base, "qwen3"), ROWS), QWEN3)
    with qwchat.load(folder, threads=1) as model:
        assert (model.tokenizer.special_ids["<think>"], model.tokenizer.special_ids["</think>"]) == (151_667, 151_668)
        assert model.prompt(CHATS[0]).reasoning == "optional"
        closed = model.prompt(CHATS[0], options=PromptOptions(thinking=False))
        assert closed.reasoning == "none"
        assert list(closed.ids)[-4:-2] == [151_667, model.encode("\n\n")[0]]
