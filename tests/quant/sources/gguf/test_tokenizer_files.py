"""Tokenizer files from GGUF metadata equal the published ones, and hostile metadata is refused in one line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from quant.errors import CheckpointError
from quant.sources.gguf.tokenizer_files import tokenizer_files
from quant.sources.gguf.tokenizer_keys import SAMPLING
from quant.tokenizer_file import ADDED_LIMIT, BYTE_OF, ID_LIMIT
from qwchat.text.generation_config import GenerationDefaults
from qwchat.text.template import ChatTemplate
from qwchat.text.tokenizer import Tokenizer
from tests.clocks import cost_growth
from tests.fuzz import mutations
from tests.quant.sources.gguf.vocabularies import ADDED, published_values, r1_metadata, tokenizer_metadata
from tests.text.test_tokenizer import PHRASES, SCRIPTS
from tests.text.thinking_templates import R1, R1_TOKENS
from tests.text.tiny import tokenizer_values
from tests.tiers import count

WHERE = "model.gguf"
TINY = tokenizer_values()
FIRST = len(TINY["model"]["vocab"])
PREFIXES = {"continuing_subword_prefix": "", "end_of_word_suffix": "", "dropout": None, "unk_token": None}
PREFIXES |= {"fuse_unk": False, "byte_fallback": False}


def tiny_metadata(**others: Any) -> dict[str, Any]:
    return tokenizer_metadata(published_values(TINY, "qwen2"), FIRST + 8, **others)


def parsed(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the files for `metadata`, the JSON files parsed."""
    files = tokenizer_files(metadata, WHERE)
    return {name: json.loads(data) if name.endswith(".json") else data.decode() for name, data in files.items()}


def write_files(metadata: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in tokenizer_files(metadata, WHERE).items():
        (folder / name).write_bytes(data)
    return folder


def test_the_tokenizer_of_qwen2_has_the_bytes_of_the_published_file(shared_qwen2: Path) -> None:
    published = (shared_qwen2 / "7b-instruct" / "tokenizer.json").read_bytes()
    metadata = tokenizer_metadata(json.loads(published), 152_064)
    assert tokenizer_files(metadata, WHERE)["tokenizer.json"] == published


@pytest.mark.slow
@pytest.mark.parametrize("model", ["qwen2.5", "qwen3", "r1"])
def test_ids_texts_and_added_tokens_equal_the_published_ones(shared_qwen2: Path, tmp_path: Path, model: str) -> None:
    base = json.loads((shared_qwen2 / "7b-instruct" / "tokenizer.json").read_bytes())
    values = published_values(base, model)
    metadata = r1_metadata(base, 151_936) if model == "r1" else tokenizer_metadata(values, 151_936)
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    published = Tokenizer.from_folder(tmp_path)
    read = Tokenizer.from_folder(write_files(metadata, tmp_path / "read"), model_vocab_size=151_936)
    assert json.loads((tmp_path / "read" / "tokenizer.json").read_bytes()) == values
    assert (read.special_ids, read.vocab_size) == (published.special_ids, published.vocab_size)
    assert read.all_bytes() == published.all_bytes()
    dice = random.Random(8)
    for text in (*PHRASES, *("".join(dice.choices(SCRIPTS, k=dice.randrange(1, 120))) for _ in range(100))):
        ids = published.encode(text)
        assert read.encode(text) == ids
        assert read.decode(ids) == published.decode(ids)


@pytest.mark.parametrize("model", ADDED)
def test_added_tokens_keep_their_ids_and_flags(model: str) -> None:
    values = published_values(TINY, model)
    metadata = r1_metadata(TINY, FIRST + 40) if model == "r1" else tokenizer_metadata(values, FIRST + 40)
    files = parsed(metadata)
    assert files["tokenizer.json"]["added_tokens"] == values["added_tokens"]
    listed = {str(token.pop("id")): token for token in deepcopy(values["added_tokens"])}
    assert files["tokenizer_config.json"]["added_tokens_decoder"] == listed
    expected = {**values, "model": {"type": "BPE", **PREFIXES, **values["model"]}}
    assert {**files["tokenizer.json"], "post_processor": None} == {**expected, "post_processor": None}


def test_a_control_token_of_an_unknown_model_is_special() -> None:
    metadata = tiny_metadata()
    metadata["tokenizer.ggml.tokens"][FIRST + 3 : FIRST + 5] = ["<|made_up|>", "<made_up>"]
    metadata["tokenizer.ggml.token_type"][FIRST + 3 : FIRST + 5] = [3, 4]
    added = parsed(metadata)["tokenizer.json"]["added_tokens"]
    assert [(token["id"], token["content"], token["special"]) for token in added[3:]] == [
        (FIRST + 3, "<|made_up|>", True),
        (FIRST + 4, "<made_up>", False),
    ]


@pytest.mark.parametrize("kind", [1, 4, 5], ids=["normal", "user-defined", "unused"])
def test_padding_is_left_out_whatever_its_type(kind: int) -> None:
    metadata = tiny_metadata()
    metadata["tokenizer.ggml.token_type"][FIRST + 3 :] = [kind] * 5
    assert tokenizer_files(metadata, WHERE) == tokenizer_files(tiny_metadata(), WHERE)


def test_a_padding_token_is_known_by_its_own_id_only() -> None:
    metadata = tiny_metadata()
    metadata["tokenizer.ggml.tokens"][FIRST + 3] = "[PAD5]"
    metadata["tokenizer.ggml.token_type"][FIRST + 3] = 4
    assert parsed(metadata)["tokenizer.json"]["added_tokens"][3]["content"] == "[PAD5]"


def test_the_bos_token_of_r1_begins_texts_and_reaches_its_template(tmp_path: Path) -> None:
    metadata = {**r1_metadata(TINY, FIRST + 40), "tokenizer.chat_template": R1}
    files = parsed(metadata)
    assert files["tokenizer.json"]["post_processor"] == published_values(TINY, "r1")["post_processor"]
    config = files["tokenizer_config.json"]
    names = ("add_bos_token", "bos_token", "eos_token", "pad_token")
    assert [config[name] for name in names] == [True, R1_TOKENS[3], R1_TOKENS[0], R1_TOKENS[0]]
    assert files["chat_template.jinja"] == R1
    template = ChatTemplate.from_folder(write_files(metadata, tmp_path / "files"))
    assert (
        template.render([{"role": "user", "content": "hello"}])
        == f"{R1_TOKENS[3]}<｜User｜>hello<｜Assistant｜><think>\n"
    )


def test_the_bos_token_of_qwen2_reaches_no_template() -> None:
    files = parsed(tiny_metadata())
    assert files["tokenizer_config.json"]["bos_token"] is None
    assert files["tokenizer_config.json"]["add_bos_token"] is False
    assert files["tokenizer.json"]["post_processor"]["type"] == "ByteLevel"
    assert files["generation_config.json"]["bos_token_id"] == FIRST


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ({}, [FIRST + 2, FIRST]),
        ({"eos_token_id": FIRST}, [FIRST, FIRST + 2]),
        ({"eos_token_id": None}, [FIRST + 2, FIRST]),
        ({"eot_token_id": 5, "eom_token_id": 7}, [FIRST + 2, 5, 7, FIRST]),
    ],
    ids=["instruct", "base", "no key", "further keys"],
)
def test_replies_end_at_every_token_that_ends_them(tmp_path: Path, ids: dict[str, Any], expected: list[int]) -> None:
    folder = write_files(tiny_metadata(**ids), tmp_path / "files")
    assert list(GenerationDefaults.from_folder(folder).eos_token_ids) == expected


def test_without_sampling_defaults_replies_are_greedy(tmp_path: Path) -> None:
    assert not GenerationDefaults.from_folder(write_files(tiny_metadata(), tmp_path / "files")).do_sample


def test_sampling_defaults_of_the_file_are_kept(tmp_path: Path) -> None:
    given = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.sampling.top_p": 0.95}
    defaults = GenerationDefaults.from_folder(write_files(tiny_metadata() | given, tmp_path / "files"))
    assert (defaults.do_sample, defaults.temperature, defaults.top_k, defaults.top_p) == (True, 0.6, 20, 0.95)
    greedy = tiny_metadata() | {"general.sampling.temp": 0.0}
    assert parsed(greedy)["generation_config.json"]["do_sample"] is False


@pytest.mark.parametrize("key", SAMPLING)
def test_extreme_sampling_defaults_can_be_loaded_or_are_refused(tmp_path: Path, key: str) -> None:
    name, low, high = SAMPLING[key]
    for value in (low, high):
        folder = write_files(tiny_metadata() | {key: value}, tmp_path / "files")
        assert getattr(GenerationDefaults.from_folder(folder), name) == value
    for value in (-1.0, high * 1.01, float("nan"), float("inf"), True, "1"):
        with pytest.raises(CheckpointError, match=rf"^model\.gguf: {key} is .*, expected a number from"):
            tokenizer_files(tiny_metadata() | {key: value}, WHERE)


def test_the_default_template_is_taken_from_several() -> None:
    names = {"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "tools"}
    assert "chat_template.jinja" not in parsed(tiny_metadata() | names)
    assert parsed(tiny_metadata() | names | {"tokenizer.chat_template": "plain"})["chat_template.jinja"] == "plain"
    named = names | {"tokenizer.chat_template.default": "plain"}
    assert parsed(tiny_metadata() | named)["chat_template.jinja"] == "plain"


def test_the_context_length_is_known_if_the_file_says_it() -> None:
    known = {"general.architecture": "qwen3", "qwen3.context_length": 40_960}
    assert parsed(tiny_metadata() | known)["tokenizer_config.json"]["model_max_length"] == 40_960
    assert "model_max_length" not in parsed(tiny_metadata())["tokenizer_config.json"]


def changed(**changes: Any) -> dict[str, Any]:
    """Return tiny metadata with `tokenizer.ggml` keys replaced; None removes a key."""
    metadata = tiny_metadata() | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return {key: value for key, value in metadata.items() if value is not None}


def with_tokens(place: int, *tokens: Any, kind: int = 1) -> dict[str, Any]:
    """Return tiny metadata with other tokens of one type from the id `place` on."""
    metadata = tiny_metadata()
    metadata["tokenizer.ggml.tokens"][place : place + len(tokens)] = tokens
    metadata["tokenizer.ggml.token_type"][place : place + len(tokens)] = [kind] * len(tokens)
    return metadata


def many_added() -> dict[str, Any]:
    metadata = tokenizer_metadata(published_values(TINY, "qwen2"), FIRST + 3 + ADDED_LIMIT)
    metadata["tokenizer.ggml.token_type"][FIRST + 3 :] = [4] * ADDED_LIMIT
    metadata["tokenizer.ggml.tokens"][FIRST + 3 :] = [f"<{number}>" for number in range(ADDED_LIMIT)]
    return metadata


REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "no tokenizer": (dict, "the key 'tokenizer.ggml.model' (string) is missing; download the file again"),
    "SentencePiece": (
        lambda: changed(model="llama"),
        "tokenizer.ggml.model is 'llama', expected gpt2; only tokenizers of the Qwen family are supported",
    ),
    "another split": (
        lambda: changed(pre="llama-bpe"),
        "tokenizer.ggml.pre is 'llama-bpe', expected qwen2 or deepseek-r1-qwen; "
        "only tokenizers of the Qwen family are supported",
    ),
    "no split": (
        lambda: changed(pre=None),
        "tokenizer.ggml.pre is missing, as in files of 2024 and before; get a newer file",
    ),
    "no tokens": (
        lambda: changed(tokens=None),
        "the key tokenizer.ggml.tokens (list) is missing; download the file again",
    ),
    "no types": (
        lambda: changed(token_type=None),
        "the key tokenizer.ggml.token_type (list) is missing; download the file again",
    ),
    "no merges": (
        lambda: changed(merges=None),
        "the key tokenizer.ggml.merges (list) is missing; download the file again",
    ),
    "empty tokens": (
        lambda: changed(tokens=[]),
        "tokenizer.ggml.tokens is not a list of 1 to 1,048,576 values of the type str; download the file again",
    ),
    "numbers as tokens": (
        lambda: changed(tokens=[1, 2]),
        "tokenizer.ggml.tokens is not a list of 1 to 1,048,576 values of the type str; download the file again",
    ),
    "text as merges": (
        lambda: changed(merges="a b"),
        "tokenizer.ggml.merges is not a list of 1 to 1,048,576 values of the type str; download the file again",
    ),
    "too many tokens": (
        lambda: changed(tokens=["a"] * (ID_LIMIT + 1)),
        "tokenizer.ggml.tokens is not a list of 1 to 1,048,576 values of the type str; download the file again",
    ),
    "fewer types than tokens": (
        lambda: changed(token_type=[1, 1]),
        f"tokenizer.ggml.tokens lists {FIRST + 8} tokens, but tokenizer.ggml.token_type 2 types; "
        "download the file again",
    ),
    "byte token": (
        lambda: with_tokens(7, "<0x07>", kind=6),
        "token 7 ('<0x07>') has the type 6; only tokenizers of the Qwen family are supported",
    ),
    "repeated token": (
        lambda: with_tokens(FIRST + 1, "<|im_end|>", kind=3),
        f"the tokens {FIRST + 1} and {FIRST + 2} are both '<|im_end|>'; download the file again",
    ),
    "repeated token in the vocabulary": (
        lambda: with_tokens(FIRST + 3, "he"),
        f"the tokens 256 and {FIRST + 3} are both 'he'; download the file again",
    ),
    "lone surrogate": (
        lambda: with_tokens(FIRST + 3, "\ud800"),
        "tokenizer.ggml.tokens has a token with a lone surrogate; download the file again",
    ),
    "missing byte": (
        lambda: with_tokens(0, "!!"),
        "tokenizer.ggml.tokens has no token for the byte 0x21; download the file again",
    ),
    "long token": (
        lambda: with_tokens(FIRST + 3, "a" * 1025),
        "tokenizer: model: vocab has a token that is empty or longer than 1,024 characters: "
        "restore it from the model's source",
    ),
    "empty token": (
        lambda: with_tokens(FIRST + 3, ""),
        "tokenizer: model: vocab has a token that is empty or longer than 1,024 characters: "
        "restore it from the model's source",
    ),
    "long control token": (
        lambda: with_tokens(FIRST + 3, "<" * 101, kind=3),
        "tokenizer: an added token is not a string of 1 to 100 characters: restore it from the model's source",
    ),
    "private character": (
        lambda: with_tokens(FIRST + 3, "\U000f0000", kind=3),
        "tokenizer: an added token has a private-use character (plane 15 or 16): restore it from the model's source",
    ),
    "many control tokens": (
        many_added,
        "1,027 tokens are of the type control or user-defined, more than 1,024; download the file again",
    ),
    "merge of an unknown token": (
        lambda: changed(merges=["h e", "h x"]),
        "tokenizer: model: merges has the pair 'h x', which is not in vocab: restore it from the model's source",
    ),
    "merge of three tokens": (
        lambda: changed(merges=["h e l"]),
        "tokenizer: model: merges has an entry that is not a pair of tokens: restore it from the model's source",
    ),
    "many characters": (
        lambda: changed(merges=["h " + "e" * 4_000_000] * 9),
        "the tokenizer has more than 33,554,432 characters; download the file again",
    ),
    "eos outside": (
        lambda: changed(eos_token_id=FIRST + 8),
        f"tokenizer.ggml.eos_token_id is {FIRST + 8}, which is not in tokenizer.ggml.tokens; download the file again",
    ),
    "negative bos": (
        lambda: changed(bos_token_id=-1),
        "tokenizer.ggml.bos_token_id is -1, expected an integer from 0 to 1048575; download the file again",
    ),
    "bos of no token": (
        lambda: changed(bos_token_id=FIRST + 4, add_bos_token=True),
        "tokenizer.ggml.add_bos_token is true, but tokenizer.ggml.bos_token_id does not name a control token; "
        "download the file again",
    ),
    "text as flag": (
        lambda: changed(add_bos_token="yes"),
        "tokenizer.ggml.add_bos_token is 'yes', expected true or false; download the file again",
    ),
    "template that is a list": (
        lambda: tiny_metadata() | {"tokenizer.chat_template": ["a"]},
        "tokenizer.chat_template is not a text of at most 4,194,304 characters; download the file again",
    ),
    "huge template": (
        lambda: tiny_metadata() | {"tokenizer.chat_template": "a" * (4 << 20) + "a"},
        "tokenizer.chat_template is not a text of at most 4,194,304 characters; download the file again",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_metadata_is_refused_in_one_line(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(CheckpointError) as caught:
        tokenizer_files(make(), WHERE)
    assert str(caught.value) == f"{WHERE}: {message}"


def test_a_model_without_a_token_that_ends_replies_is_refused() -> None:
    metadata = changed(eos_token_id=None)
    metadata["tokenizer.ggml.tokens"][FIRST : FIRST + 3] = ["<a>", "<b>", "<c>"]
    with pytest.raises(CheckpointError, match=r"eos_token_id nor another key names the token that ends a reply"):
        tokenizer_files(metadata, WHERE)


def test_mutated_metadata_loads_or_is_refused_in_one_line(tmp_path: Path) -> None:
    dice = random.Random(12)
    messages: list[str] = []
    rounds = count(2000, 40)
    for _ in range(rounds):
        start = dice.choice((tiny_metadata(), r1_metadata(TINY, FIRST + 30)))
        start |= {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "tokenizer.chat_template": R1}
        metadata = mutate(dice, start)
        try:
            folder = write_files(metadata, tmp_path / "files")
        except CheckpointError as error:
            messages.append(str(error))
            continue
        assert Tokenizer.from_folder(folder, model_vocab_size=ID_LIMIT).decode([0]) is not None
        assert GenerationDefaults.from_folder(folder).eos_token_ids
    assert 0 < len(messages) < rounds
    assert not [message for message in messages if "\n" in message or len(message) > 400]


def mutate(dice: random.Random, metadata: dict[str, Any]) -> dict[str, Any]:
    """Change values, or single items of lists, in a few places."""
    for _ in range(dice.choice((1, 1, 2, 4))):
        key = dice.choice(list(metadata))
        value = metadata[key]
        if isinstance(value, list) and value and dice.random() < 0.8:
            place = dice.randrange(len(value))
            other = dice.choice((mutations.value(dice, 1), mutations.text(dice), dice.randrange(8), dice.choice(value)))
            metadata[key] = dice.choice(([*value[:place], other, *value[place + 1 :]], value[:place], [*value, other]))
        else:
            metadata[key] = dice.choice((mutations.value(dice, 1), dice.randrange(FIRST + 40)))
    return metadata


@pytest.mark.slow
def test_time_grows_evenly_with_the_vocabulary() -> None:
    def read(tokens: int) -> object:
        metadata = tiny_metadata()
        more = [f"{character}{number}" for number in range(tokens // 256) for character in BYTE_OF]
        metadata["tokenizer.ggml.tokens"] += more
        metadata["tokenizer.ggml.token_type"] += [1] * len(more)
        metadata["tokenizer.ggml.merges"] *= tokens // len(metadata["tokenizer.ggml.merges"])
        return tokenizer_files(metadata, WHERE)

    assert cost_growth(read, 1 << 15, 8) < 24  # Quadratic time would be a factor of 64.
