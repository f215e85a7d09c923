"""The token at the beginning of a prompt: as often as the template writes it, whatever the configuration says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import qwchat
from quant import convert
from qwchat.messages import Message
from qwchat.request import PromptOptions
from tests.quant.checkpoints import make_checkpoint, write_json
from tests.text.thinking_templates import QWEN3, R1, R1_FIRST, R1_TOKENS
from tests.text.tiny import tokenizer_values

BOS = R1_TOKENS[3]
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def make_model(folder: Path, template: str, config: dict[str, Any]) -> tuple[Path, int]:
    """Write a model with the files of R1. Return its folder and the id of its BOS token."""
    values = tokenizer_values()
    first = len(values["model"]["vocab"])
    bos_id, eos_id = first + 3, first
    config_values = {"hidden_size": 128, "max_position_embeddings": 512, "eos_token_id": eos_id}
    # The config of R1 names the wrong BOS.
    checkpoint = make_checkpoint(folder / "tiny", config_overrides={**config_values, "bos_token_id": eos_id})
    values["added_tokens"] = [
        {"id": first + number, "content": text, **FLAGS, "special": "think" not in text}
        for number, text in enumerate((*R1_TOKENS, "<|im_start|>", "<|im_end|>"))
    ]
    pieces: list[dict[str, Any]] = [
        {"SpecialToken": {"id": BOS, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [bos_id], "tokens": [BOS]}},
    }
    write_json(checkpoint / "tokenizer.json", values)
    write_json(checkpoint / "tokenizer_config.json", {"chat_template": template, "eos_token": R1_TOKENS[0], **config})
    write_json(checkpoint / "generation_config.json", {"bos_token_id": bos_id, "eos_token_id": eos_id})
    list(convert(checkpoint, folder / "tiny-q4"))
    return folder / "tiny-q4", bos_id


@pytest.mark.parametrize("adds", [True, False, None])
@pytest.mark.parametrize("template", [R1, R1_FIRST], ids=["r1", "r1-first"])
def test_a_prompt_of_r1_begins_with_exactly_one(tmp_path: Path, template: str, adds: bool | None) -> None:
    config: dict[str, Any] = {"bos_token": {"__type": "AddedToken", "content": BOS, **FLAGS}}
    folder, bos_id = make_model(tmp_path, template, config if adds is None else {**config, "add_bos_token": adds})
    with qwchat.load(folder, threads=1) as model:
        for system in (None, "Be brief."):
            messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
            for number in range(5):
                messages.append({"role": "user", "content": f"hello {number} {BOS}"})  # Typed, it is text.
                ids = list(model.prompt(messages).ids)
                assert ids.count(bos_id) == 1
                assert ids[0] == bos_id
                reply = [*model.encode("the hell"), model.tokenizer.special_ids["</think>"], *model.encode("\n\nhello")]
                messages.append({"role": "assistant", "content": model.decode(reply), "token_ids": reply})
                kept = model.prompt(messages, options=PromptOptions(keep_thoughts=True)).ids
                assert list(kept).count(bos_id) == 1
                begun = list(model.prompt(messages, continuing=True).ids)
                assert begun[: len(ids)] == ids
                assert begun.count(bos_id) == 1


@pytest.mark.parametrize("token", [BOS, None])
def test_a_template_without_the_token_gets_none(tmp_path: Path, token: str | None) -> None:
    folder, bos_id = make_model(tmp_path, QWEN3, {"bos_token": token, "add_bos_token": True})
    with qwchat.load(folder, threads=1) as model:
        assert bos_id not in model.prompt([{"role": "user", "content": "hello"}]).ids


def test_a_template_with_the_token_writes_nothing_if_the_configuration_lacks_it(tmp_path: Path) -> None:
    folder, bos_id = make_model(tmp_path, R1, {"add_bos_token": True})
    with qwchat.load(folder, threads=1) as model:
        assert bos_id not in model.prompt([{"role": "user", "content": "hello"}]).ids
