"""Prompts, compared with transformers' `apply_chat_template`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from qwchat.messages import Message
from qwchat.text.template import ChatTemplate
from qwchat.text.template.encoding import encode_chat
from qwchat.text.tokenizer import Tokenizer
from tests.text.test_template import CONTENTS, conversation

transformers = pytest.importorskip("transformers")

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Wetter für <Ort> & 'Tag'",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    }
]


@pytest.fixture(scope="module")
def folder(shared_qwen2: Path) -> Path:
    return shared_qwen2 / "7b-instruct"


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module", params=["qwen2", "qwen2.5"])
def source(request: pytest.FixtureRequest, shared_qwen2: Path, folder: Path) -> str:
    if request.param == "qwen2":
        return ChatTemplate.from_folder(folder).source
    return (shared_qwen2 / "qwen2.5-instruct-chat-template.jinja").read_text()


@pytest.mark.parametrize("system", [None, "Answer in French.", ""])
@pytest.mark.parametrize("turns", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("generation_prompt", [True, False])
def test_text_and_ids_equal_the_reference(
    reference: Any, tokenizer: Tokenizer, source: str, turns: int, system: str | None, generation_prompt: bool
) -> None:
    template = ChatTemplate(source)
    dice = random.Random(turns)
    for _ in range(4):
        messages = conversation(turns, system, tuple(dice.sample(CONTENTS, len(CONTENTS))))
        options = {"chat_template": source, "add_generation_prompt": generation_prompt}
        text = reference.apply_chat_template(messages, tokenize=False, **options)
        assert template.render(messages, generation_prompt) == text
        ids = reference.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
        assert encode_chat(tokenizer, template, messages, generation_prompt) == list(ids)


@pytest.mark.parametrize("system", [None, "Answer in French."])
def test_tools_equal_the_reference(reference: Any, source: str, system: str | None) -> None:
    messages = [*conversation(2, system), Message(role="tool", content='{"temperature": 21}')]
    text = reference.apply_chat_template(messages, tools=TOOLS, tokenize=False, chat_template=source)
    assert ChatTemplate(source).render(messages, add_generation_prompt=False, tools=TOOLS) == text
