"""Prompts of reasoning models, compared with transformers' `apply_chat_template`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qwchat.messages import Message
from qwchat.text.prompts import build_prompt
from qwchat.text.template import ChatTemplate
from qwchat.text.template.encoding import encode_chat
from qwchat.text.tokenizer import Tokenizer
from tests.text.thinking_templates import QWEN3, QWQ, R1, R1_FIRST, R1_TOKENS
from tests.tiers import count

transformers = pytest.importorskip("transformers")

FIRST_ADDED_ID = 151_643
QWEN3_IDS = {"<think>": 151_667, "</think>": 151_668}
TEMPLATES = {"r1": R1, "r1-first": R1_FIRST, "qwq": QWQ, "qwen3": QWEN3}
CONTENTS = (
    *("Hello, what is 7 + 8?", "Grüße,  zwei\n\nZeilen ", "漢字 und 👍🏽\t", "", "a < b | c > d // {{ x }}"),
    *("def f():\n    return 1\n", "Ende.\n"),
)
REPLIES = (
    *(
        "plain",
        "thought\n</think>\n\nanswer",
        "<think>\nlong\n\nthought\n</think>\n\nanswer\n",
        "<think>\n\n</think>\n\nx",
    ),
    *("</think>answer", "a</think>b</think>\n\nc", "\n\nanswer with  blanks ", ""),
)


def added_token(token_id: int, content: str, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": token_id, "content": content, **flags}


def write_tokenizer(folder: Path, published: Path, tokens: dict[str, int], config: dict[str, Any]) -> None:
    """Write the tokenizer of Qwen2 with these added tokens."""
    values = json.loads((published / "tokenizer.json").read_text(encoding="utf-8"))
    values["added_tokens"] = [added_token(each, text, special="think" not in text) for text, each in tokens.items()]
    bos = config.get("bos_token")
    if bos is not None:
        special = {bos["content"]: {"id": bos["content"], "ids": [tokens[bos["content"]]], "tokens": [bos["content"]]}}
        pieces = [{"SpecialToken": {"id": bos["content"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        pair = [*pieces, {"Sequence": {"id": "B", "type_id": 1}}]
        values["post_processor"] = {
            "type": "TemplateProcessing", "single": pieces, "pair": pair, "special_tokens": special
        }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(published / name, folder / name)


@pytest.fixture(scope="module")
def folders(shared_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a folder in the manner of R1 and one in the manner of Qwen3 and QwQ."""
    published, made = shared_qwen2 / "7b-instruct", {}
    r1 = {text: FIRST_ADDED_ID + number for number, text in enumerate(R1_TOKENS)}
    bos = {**added_token(0, R1_TOKENS[3], special=True), "__type": "AddedToken"}
    config = {"bos_token": bos, "eos_token": R1_TOKENS[0], "add_bos_token": True, "add_eos_token": False}
    qwen = {"<|endoftext|>": FIRST_ADDED_ID, "<|im_start|>": FIRST_ADDED_ID + 1, "<|im_end|>": FIRST_ADDED_ID + 2}
    fillers = {f"<|unused_{each}|>": each for each in range(FIRST_ADDED_ID + 3, QWEN3_IDS["<think>"])}
    for name, tokens, values in (
        ("r1", r1, config),
        ("qwen", {**qwen, **fillers, **QWEN3_IDS}, {"eos_token": "<|im_end|>", "bos_token": None}),
    ):
        made[name] = tmp_path_factory.mktemp(name)
        values = {**values, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        write_tokenizer(made[name], published, tokens, values)
    return made


@pytest.fixture(scope="module", params=TEMPLATES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(folders: dict[str, Path], name: str) -> Path:
    return folders["r1" if name.startswith("r1") else "qwen"]


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


def template_of(name: str, folder: Path) -> ChatTemplate:
    (folder / "chat_template.jinja").write_text(TEMPLATES[name], encoding="utf-8")
    return ChatTemplate.from_folder(folder)


def conversation(turns: int, system: str | None, shift: int) -> list[Message]:
    """Return a conversation of `turns` questions with replies in between, which think or do not."""
    messages = [] if system is None else [Message(role="system", content=system)]
    for turn in range(turns):
        if turn:
            messages.append(Message(role="assistant", content=REPLIES[(turn + shift) % len(REPLIES)]))
        messages.append(Message(role="user", content=CONTENTS[(turn + shift) % len(CONTENTS)]))
    return messages


@pytest.mark.parametrize("enable_thinking", [None, True, False])
@pytest.mark.parametrize("system", [None, "Answer in French.", ""])
@pytest.mark.parametrize("turns", [1, 2, 3, 4, 5])
def test_text_and_ids_equal_the_reference(
    name: str,
    folder: Path,
    reference: Any,
    tokenizer: Tokenizer,
    turns: int,
    system: str | None,
    enable_thinking: bool | None,
) -> None:
    template = template_of(name, folder)
    variables = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    for shift in range(count(len(REPLIES), 2)):
        messages = conversation(turns, system, shift)
        given = [dict(message) for message in messages]
        for generation_prompt in (True, False):
            options = {"chat_template": template.source, "add_generation_prompt": generation_prompt, **variables}
            text = reference.apply_chat_template(given, tokenize=False, **options)
            assert template.render(messages, generation_prompt, variables=variables) == text
            ids = list(reference.apply_chat_template(given, tokenize=True, return_dict=False, **options))
            assert encode_chat(tokenizer, template, messages, generation_prompt, variables) == ids


def test_a_conversation_that_ends_with_a_reply_equals_the_reference(
    name: str, folder: Path, reference: Any, tokenizer: Tokenizer
) -> None:
    template = template_of(name, folder)
    for reply in REPLIES:
        messages = [*conversation(2, None, 1), Message(role="assistant", content=reply)]
        options = {"chat_template": template.source, "add_generation_prompt": False}
        ids = reference.apply_chat_template([*map(dict, messages)], tokenize=True, return_dict=False, **options)
        assert encode_chat(tokenizer, template, messages, add_generation_prompt=False) == list(ids)


def test_thoughts_with_token_ids_are_cut_too(name: str, folder: Path, tokenizer: Tokenizer) -> None:
    template = template_of(name, folder)
    for shift in range(len(REPLIES)):
        messages = conversation(5, "Be brief.", shift)
        ids = encode_chat(tokenizer, template, messages)
        for message in messages:
            if message["role"] == "assistant" and "</think>" in message["content"]:
                pieces = tokenizer.control_pattern.split(message["content"])
                found = tokenizer.control_pattern.findall(message["content"])
                parts: list[Any] = [pieces[0]]
                for token, piece in zip(found, pieces[1:], strict=True):
                    parts += [[tokenizer.special_ids[token]], piece]
                message["token_ids"] = tokenizer.encode_prompt(parts)
        assert encode_chat(tokenizer, template, messages) == ids


@pytest.mark.parametrize("turns", [1, 2, 5])
def test_a_prompt_of_r1_has_exactly_one_bos(folders: dict[str, Path], turns: int) -> None:
    folder = folders["r1"]
    tokenizer, reference = Tokenizer.from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)
    bos = tokenizer.special_ids[R1_TOKENS[3]]
    assert bos == 151_646
    assert reference("text")["input_ids"][0] == bos  # What a rendered template must not be encoded with.
    template = template_of("r1", folder)
    for system in (None, "Be brief."):
        prompt = build_prompt(tokenizer, template, conversation(turns, system, 0))
        assert list(prompt.ids).count(bos) == 1
        assert prompt.ids[0] == bos
        assert prompt.reasoning == "open"
