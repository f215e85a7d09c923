"""Tokenizer metadata for GGUF files: back to the files it came from, and equal to what gguf-py reads there."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest

from quant.errors import CheckpointError, ContainerError
from quant.exporters.gguf_tokenizer import tokenizer_metadata
from quant.families import read_config
from quant.model_config import ModelConfig
from quant.safe_files import COPIED_FILES
from quant.sources.gguf.tokenizer_files import tokenizer_files
from tests.fuzz import mutations
from tests.quant.sources.gguf import vocabularies
from tests.quant.sources.gguf.vocabularies import ADDED, FLAGS, published_values, r1_metadata
from tests.text.thinking_templates import R1, R1_TOKENS
from tests.text.tiny import tokenizer_values
from tests.tiers import count

MINI = Path(__file__).resolve().parents[3] / "models" / "mini"
TINY = tokenizer_values()
FIRST = len(TINY["model"]["vocab"])
ROWS = FIRST + 40
CONFIG = replace(read_config(MINI), vocab_size=ROWS, bos_token_id=FIRST, eos_token_ids=(FIRST + 2,))
WHERE = "models/tiny"


def files_of(**contents: Any) -> dict[str, bytes]:
    """Return the files of a model; `config`, `generation` and `template` change their content."""
    names = {"tokenizer": "tokenizer.json", "config": "tokenizer_config.json", "generation": "generation_config.json"}
    given = {"tokenizer": published_values(TINY, "qwen2"), "config": {"eos_token": "<|im_end|>"}} | contents
    template = given.pop("template", None)
    files = {names[key]: json.dumps(value).encode() for key, value in given.items()}
    return files if template is None else {**files, "chat_template.jinja": template.encode()}


def r1_files() -> dict[str, bytes]:
    """Return the files of a model of DeepSeek-R1: its generation_config.json and config.json disagree about BOS."""
    config = {"add_bos_token": True, "bos_token": {"content": R1_TOKENS[3], **FLAGS}, "eos_token": R1_TOKENS[0]}
    config |= {"pad_token": R1_TOKENS[0], "chat_template": [{"name": "default", "template": R1}]}
    generation = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "bos_token_id": FIRST + 3}
    generation["eos_token_id"] = FIRST
    return files_of(tokenizer=published_values(TINY, "r1"), config=config, generation=generation)


def read_folder(folder: Path) -> tuple[dict[str, bytes], ModelConfig]:
    files = {name: (folder / name).read_bytes() for name in COPIED_FILES if (folder / name).exists()}
    return files, read_config(folder)


def with_defaults(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer.json with parameters that change nothing set as in Qwen2's."""
    plain = {"continuing_subword_prefix": "", "end_of_word_suffix": "", "ignore_merges": False}
    vocab = dict(sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1]))
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {**tokenizer, "model": {**tokenizer["model"], **plain, "vocab": vocab}, "decoder": decoder}


def test_the_tokenizer_of_the_built_in_model_comes_back() -> None:
    files, config = read_folder(MINI)
    back = tokenizer_files(tokenizer_metadata(files, config, str(MINI)), "mini.gguf")
    published, again = (json.loads(each["tokenizer.json"]) for each in (files, back))
    assert with_defaults(again) == with_defaults(published)
    template = json.loads(files["tokenizer_config.json"])["chat_template"]
    assert back["chat_template.jinja"].decode() == template
    defaults, defaults_again = (json.loads(each["generation_config.json"]) for each in (files, back))
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    assert [defaults_again[key] for key in ids] == [defaults[key] for key in ids]


@pytest.mark.slow
def test_the_files_of_qwen2_come_back(shared_qwen2: Path) -> None:
    files, config = read_folder(shared_qwen2 / "7b-instruct")
    metadata = tokenizer_metadata(files, config, "qwen2")
    back = tokenizer_files(metadata, "qwen2.gguf")
    assert back["tokenizer.json"] == files["tokenizer.json"]
    defaults = json.loads(files["generation_config.json"])
    del defaults["transformers_version"]
    assert json.loads(back["generation_config.json"]) == defaults
    published, again = (json.loads(each["tokenizer_config.json"]) for each in (files, back))
    same = ("added_tokens_decoder", "bos_token", "eos_token", "pad_token", "unk_token", "tokenizer_class")
    assert [again[key] for key in same] == [published[key] for key in same]
    assert back["chat_template.jinja"].decode() == published["chat_template"]


@pytest.mark.parametrize("model", ADDED)
def test_added_tokens_of_published_models_come_back(model: str) -> None:
    values = published_values(TINY, model)
    files = r1_files() if model == "r1" else files_of(tokenizer=values)
    back = tokenizer_files(tokenizer_metadata(files, CONFIG, WHERE), "tiny.gguf")
    again = json.loads(back["tokenizer.json"])
    assert again["added_tokens"] == values["added_tokens"]
    if model == "r1":
        assert again["post_processor"] == values["post_processor"]


def test_the_metadata_of_r1_are_those_of_llama_cpp() -> None:
    metadata = tokenizer_metadata(r1_files(), replace(CONFIG, eos_token_ids=(FIRST,)), WHERE)
    expected = {**r1_metadata(TINY, ROWS), "tokenizer.ggml.pre": "qwen2", "tokenizer.chat_template": R1}
    assert metadata == expected | {"general.sampling.temp": 0.6, "general.sampling.top_p": 0.95}


def test_the_metadata_of_qwen2_are_those_of_llama_cpp() -> None:
    metadata = tokenizer_metadata(files_of(template="x"), CONFIG, WHERE)
    expected = vocabularies.tokenizer_metadata(published_values(TINY, "qwen2"), ROWS, add_bos_token=False)
    assert metadata == expected | {"tokenizer.chat_template": "x"}


@pytest.mark.parametrize("make", [files_of, r1_files], ids=["qwen2", "r1"])
def test_special_ids_equal_those_of_gguf_py(tmp_path: Path, make: Callable[[], dict[str, bytes]]) -> None:
    files = make()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    special = gguf.SpecialVocab(tmp_path, load_merges=True, n_vocab=ROWS)
    metadata = tokenizer_metadata(files, replace(CONFIG, bos_token_id=None, eos_token_ids=()), WHERE)
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    found = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    assert {name: token_id for name, token_id in found.items() if token_id is not None} == special.special_token_ids
    assert metadata["tokenizer.ggml.merges"] == special.merges
    assert metadata["tokenizer.ggml.add_bos_token"] is special.add_special_token.get("bos", False)


def test_merges_may_be_pairs() -> None:
    values = published_values(TINY, "qwen2")
    expected = tokenizer_metadata(files_of(), CONFIG, WHERE)
    values["model"]["merges"] = [merge.split(" ") for merge in values["model"]["merges"]]
    assert tokenizer_metadata(files_of(tokenizer=values), CONFIG, WHERE) == expected


def test_further_tokens_that_end_replies_get_keys_of_their_own() -> None:
    generation = {"eos_token_id": [FIRST + 2, FIRST, 5, 6]}
    metadata = tokenizer_metadata(files_of(generation=generation), CONFIG, WHERE)
    assert metadata["tokenizer.ggml.eot_token_id"] == 5
    assert metadata["tokenizer.ggml.eom_token_id"] == 6
    back = json.loads(tokenizer_files(metadata, "tiny.gguf")["generation_config.json"])
    assert set(back["eos_token_id"]) == {FIRST + 2, FIRST, 5, 6}


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, {}),
        ({"do_sample": False, "temperature": 0.6}, {}),
        ({"do_sample": True, "top_k": 20}, {"temp": 1.0, "top_k": 20}),
        (
            {"do_sample": True, "temperature": 0.7, "min_p": 0.1, "repetition_penalty": 1.05, "top_k": None},
            {"temp": 0.7, "min_p": 0.1, "penalty_repeat": 1.05},
        ),
    ],
    ids=["none", "greedy", "no temperature", "several"],
)
def test_sampling_defaults_are_written_for_models_that_sample(
    generation: dict[str, Any], expected: dict[str, Any]
) -> None:
    metadata = tokenizer_metadata(files_of(generation=generation), CONFIG, WHERE)
    found = {key: value for key, value in metadata.items() if key.startswith("general.")}
    assert found == {f"general.sampling.{key}": value for key, value in expected.items()}


def broken(**model: Any) -> dict[str, bytes]:
    values = published_values(TINY, "qwen2")
    return files_of(tokenizer={**values, "model": {**values["model"], **model}})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "models/tiny: tokenizer.json is missing; convert the model again"),
        (
            broken(ignore_merges=True),
            "models/tiny: GGUF has no name for the pre-tokenizer or the merges of tokenizer.json; "
            "export the model as a safetensors checkpoint",
        ),
        (
            broken(vocab={**TINY["model"]["vocab"], "x y": ROWS}),
            f"models/tiny: tokenizer.json has the token id {ROWS}, but config.json has a vocab_size of {ROWS}; "
            "restore both from the same model",
        ),
        (
            broken(type="Unigram"),
            "models/tiny/tokenizer.json: the model 'Unigram' is not supported (byte-level BPE is): "
            "only tokenizers of the Qwen family are supported",
        ),
        (
            files_of(config={"add_bos_token": "yes"}),
            "models/tiny/tokenizer_config.json: add_bos_token is 'yes', expected true or false; "
            "convert the model again",
        ),
        (
            files_of(config={"chat_template": "\ud800"}),
            "models/tiny: chat_template in tokenizer_config.json has a lone surrogate; convert the model again",
        ),
        (
            {**files_of(), "chat_template.jinja": b"\xff"},
            "models/tiny: chat_template.jinja is not UTF-8 text; convert the model again",
        ),
        (
            files_of(generation={"eos_token_id": [5, 6, 7, 8]}),
            "models/tiny: 5 tokens end a reply, more than GGUF can name; export the model as a safetensors checkpoint",
        ),
        (
            files_of(generation={"eos_token_id": [ROWS]}),
            f"models/tiny: eos_token_id has the id {ROWS}, which is outside the vocabulary; convert the model again",
        ),
        (
            files_of(generation={"do_sample": True, "temperature": -1}),
            "models/tiny/generation_config.json: temperature is -1, expected a number from 0 to 5; "
            "convert the model again",
        ),
    ],
    ids=lambda value: value.split(": ", 1)[1][:30] if isinstance(value, str) else "",
)
def test_what_gguf_cannot_hold_is_refused_in_one_line(files: dict[str, bytes], message: str) -> None:
    with pytest.raises(ContainerError) as caught:
        tokenizer_metadata(files, CONFIG, WHERE)
    assert str(caught.value) == message


def test_mutated_files_are_exported_readably_or_refused_in_one_line() -> None:
    dice = random.Random(3)
    refused = []
    for _ in range(count(1000, 30)):
        files = dice.choice((r1_files(), files_of(generation={"eos_token_id": [FIRST + 2, FIRST]})))
        name = dice.choice(list(files))
        files[name] = mutations.dumps(dice, mutations.mutate_json(dice, json.loads(files[name])))
        try:
            metadata = tokenizer_metadata(files, CONFIG, WHERE)
        except ContainerError as error:
            refused.append(str(error))
            continue
        try:
            tokenizer_files(metadata, "tiny.gguf")
        except CheckpointError as error:
            refused.append(str(error))
    assert not [message for message in refused if "\n" in message or len(message) > 400]
