"""Files of the embedded model: a Qwen2 checkpoint whose parts agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment
from safetensors import safe_open
from tokenizers import Tokenizer, normalizers

from models.recipe.chatml import ChatML
from models.recipe.recipe import MODEL
from models.recipe.turns import Dialogue, Turn
from tests.tiers import count


def read_json(name: str) -> dict[str, Any]:
    return json.loads((MODEL / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def test_the_checkpoint_has_the_shapes_of_its_config() -> None:
    config = read_json("config.json")
    hidden, inter, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = config["num_key_value_heads"] * hidden // config["num_attention_heads"]
    expected = {"model.embed_tokens.weight": [vocab, hidden], "model.norm.weight": [hidden]}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        expected |= {
            f"{layer}self_attn.{p}_proj.weight": [rows, hidden]
            for p, rows in zip("qkvo", (hidden, kv, kv, hidden), strict=True)
        }
        expected |= {f"{layer}self_attn.{p}_proj.bias": [rows] for p, rows in zip("qkv", (hidden, kv, kv), strict=True)}
        expected |= {f"{layer}mlp.{p}_proj.weight": [inter, hidden] for p in ("gate", "up")}
        expected[f"{layer}mlp.down_proj.weight"] = [hidden, inter]
        expected |= {f"{layer}{norm}.weight": [hidden] for norm in ("input_layernorm", "post_attention_layernorm")}
    with safe_open(MODEL / "model.safetensors", "numpy") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        kinds = {file.get_slice(name).get_dtype() for name in found}
    assert found == expected
    assert kinds == {"BF16"}
    assert (MODEL / "model.safetensors").stat().st_size < 30_000_000


def test_the_special_tokens_agree(tokenizer: Tokenizer) -> None:
    config, generation = read_json("config.json"), read_json("generation_config.json")
    end, text = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    assert config["eos_token_id"] == end
    assert generation["eos_token_id"] == [end, text]
    assert generation["do_sample"] is False
    assert tokenizer.get_vocab_size() <= config["vocab_size"]
    assert len(read_json("vocab.json")) == tokenizer.get_vocab_size() - 3
    assert len((MODEL / "merges.txt").read_text(encoding="utf-8").splitlines()) == len(read_json("vocab.json")) - 256


@settings(max_examples=count(200, 40), deadline=None)
@given(st.text())
def test_decoding_restores_any_text(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == normalizers.NFC().normalize_str(text)


def test_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("2048").tokens == ["2", "0", "4", "8"]


def test_training_uses_the_tokens_of_the_template(tokenizer: Tokenizer) -> None:
    turns = (Turn("What is 2 + 2?", "2 + 2 = 4."), Turn("Spell cat.", "cat is spelt c-a-t."))
    chatml = ChatML(tokenizer)
    template = Environment(autoescape=False).from_string(read_json("tokenizer_config.json")["chat_template"])
    for system in (None, "Be kind."):
        dialogue = Dialogue(system, turns)
        messages = [*dialogue.messages(), {"role": "assistant", "content": turns[-1].answer}]
        ids, predicted = chatml.encode(dialogue)
        assert ids == tokenizer.encode(template.render(messages=messages), add_special_tokens=False).ids
        prompt = template.render(messages=dialogue.messages(), add_generation_prompt=True)
        assert chatml.prompt(dialogue.messages()) == tokenizer.encode(prompt, add_special_tokens=False).ids
        answers = tokenizer.decode(
            [token for token, marked in zip(ids, predicted, strict=True) if marked], skip_special_tokens=False
        )
        assert answers == "".join(f"{turn.answer}<|im_end|>" for turn in turns)


def test_the_card_has_figures() -> None:
    card = Path(MODEL / "README.md").read_text(encoding="utf-8")
    assert "<!-- figures:start -->" in card
    assert "| bf16 |" in card
