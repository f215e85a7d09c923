"""Text to ids and back, without loss and without control tokens from text."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from quant.tokenizer_file import BYTE_OF
from qwchat.errors import ModelError, UsageError
from qwchat.text.tokenizer import Tokenizer
from tests.clocks import cost_growth
from tests.text.tiny import CONTROL, tokenizer_values, write_tokenizer

MEGABYTE = 1_000_000

PHRASES = (
    "plain ASCII, and a   few  spaces\t\ttabs\r\nlines\n\n\n",
    "I'll can't WE'RE don't 'd 's 'S",
    "1234567890 3.14159 1e-7 0x1F ½ ² ٣٤ ৪৫",
    "Grüße, naïve façade; Ærøskøbing, Łódź, Việt Nam, ﬁnancial",
    "Привет мир. Ελλάδα. ქართული. Հայերեն. שלום עולם. مرحبا بالعالم. فارسی‌ها",
    "नमस्ते दुनिया. বাংলা. தமிழ். తెలుగు. ไทย. ລາວ. မြန်မာ. ខ្មែរ. བོད་ཡིག. ᠮᠣᠩᠭᠣᠯ. አማርኛ",
    "你好，世界。日本語のテスト。カタカナ。한국어 테스트. 𠜎𠜱𡿺",
    "👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 1️⃣ 🧑🏿‍🚀 ❤️‍🔥 ☺︎",
    "A\u0308 e\u0301 \u2126 \u1112\u1161\u11ab \ufb1d q\u0323\u0307",
    "\x00NUL\x00\x00, \x07 \x1b[31m \x7f \x85 \xa0 \u200b\u200d\u2028\u2029\u202e\ufeff",
    "\ufffd \ufffe \uffff \ue000 \U000f0000 \U0010ffff",
    "∑∫√∞ ≠ ⇒ ♫ ┌─┐ █▓▒ ⠿ 𝔄𝕏 𓀀 𐍈",
)
SCRIPTS = [
    chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Cs") and code % 7 == 0
]


def composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("text", PHRASES)
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == composed(text)


def test_random_mixtures_of_all_scripts_survive(tokenizer: Tokenizer, plain_library: tokenizers.Tokenizer) -> None:
    dice = random.Random(20240607)
    for _ in range(400):
        alphabet = dice.choice((SCRIPTS, SCRIPTS[:300], list("".join(PHRASES)), list(" \n\r\t'a1.<|>")))
        text = "".join(dice.choices(alphabet, k=dice.randrange(1, 120)))
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == composed(text)
        assert ids == plain_library.encode(text, add_special_tokens=False).ids
        assert max(ids, default=0) < min(tokenizer.special_ids.values())


@given(st.text(st.characters(exclude_categories=("Cs", "Cn"))))
def test_any_text_survives(tiny: Tokenizer, text: str) -> None:
    assert tiny.decode(tiny.encode(text)) == composed(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    ["a", " ", "\n", "!", "\x00", "漢", "👨‍👩‍👧", "é", "The quick brown fox, 42 times.\n", " \t\n"],
    ids=["letter", "space", "newline", "sign", "nul", "han", "family", "accent", "prose", "blanks"],
)
def test_time_grows_evenly_up_to_a_megabyte(qwen2: Tokenizer, unit: str) -> None:
    def encode(size: int) -> list[int]:
        return qwen2.encode(unit * (size // len(unit.encode())))

    assert cost_growth(encode, MEGABYTE // 8, 8) < 24  # Quadratic time would be a factor of 64.
    assert b"".join(map(qwen2.token_bytes, encode(MEGABYTE))) == (unit * (MEGABYTE // len(unit.encode()))).encode()


@pytest.mark.parametrize("text", ["\ud83d", "half \udc00 of it", "\ud800" * 3])
def test_a_lone_surrogate_is_refused_with_its_position(tiny: Tokenizer, text: str) -> None:
    at = next(index for index, character in enumerate(text) if unicodedata.category(character) == "Cs")
    with pytest.raises(UsageError, match=rf"lone surrogate U\+D[8C][03][0D] at position {at}: remove it"):
        tiny.encode(text)


@pytest.mark.parametrize("control", CONTROL)
def test_a_typed_control_token_stays_text(tokenizer: Tokenizer, control: str) -> None:
    for text in (control, f"before{control}after", f"{control}\n{control}", control[:-1], control * 3):
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.special_ids.values())
        assert tokenizer.decode(ids) == text


def test_the_published_ids(qwen2: Tokenizer) -> None:
    assert qwen2.special_ids == {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
    assert qwen2.vocab_size == 151646
    assert qwen2.encode("system\nYou are a helpful assistant.") == [8948, 198, 2610, 525, 264, 10950, 17847, 13]
    assert qwen2.encode("hello") == [14990]
    assert qwen2.encode("!") == [0]
    assert qwen2.encode("\u200d") == [378, 235]


def test_a_prompt_joins_text_before_encoding(tiny: Tokenizer) -> None:
    end = tiny.special_ids["<|im_end|>"]
    assert tiny.encode_prompt(["he", "llo", [end], "", [end, end], "hello"]) == [
        *tiny.encode("hello"),
        *(end, end, end),
        *tiny.encode("hello"),
    ]
    assert tiny.encode_prompt([]) == []


def test_decoding_shows_control_tokens_and_marks_broken_bytes(tiny: Tokenizer) -> None:
    half = tiny.encode("漢")[:2]
    assert tiny.decode([*half, tiny.special_ids["<|im_end|>"]]) == "\ufffd<|im_end|>"


def test_every_token_has_its_bytes(qwen2: Tokenizer) -> None:
    single = {qwen2.token_bytes(token_id) for token_id in range(256)}
    assert single == set(BYTE_OF.values()) == {bytes([value]) for value in range(256)}
    assert all(qwen2.token_bytes(token_id) for token_id in range(qwen2.vocab_size))


@pytest.mark.parametrize("token_id", [-1, 151646, 151936, 152063, 1 << 40])
def test_ids_without_a_token_are_refused(qwen2: Tokenizer, token_id: int) -> None:
    for use in (qwen2.token_bytes, lambda bad: qwen2.decode([0, bad]), lambda bad: qwen2.encode_prompt([[bad]])):
        with pytest.raises(UsageError, match=f"token id {token_id} is outside this model's vocabulary of 151,646"):
            use(token_id)


def test_a_gap_in_the_vocabulary_decodes_to_nothing(tmp_path: Path) -> None:
    values = tokenizer_values()
    values["added_tokens"][-1]["id"] += 10
    sparse = Tokenizer.from_folder(write_tokenizer(tmp_path, values))
    assert sparse.token_bytes(sparse.vocab_size - 2) == b""


def broken(**changes: Any) -> dict[str, Any]:
    values = tokenizer_values()
    for path, value in changes.items():
        target = values
        *parents, last = path.split("__")
        for parent in parents:
            target = target[int(parent) if parent.isdigit() else parent]
        target[last] = value
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "contains a JSON list, not an object"),
        ({}, "the key 'pre_tokenizer' (object) is missing"),
        (broken(model__type="WordPiece"), "the model 'WordPiece' is not supported (byte-level BPE is)"),
        (broken(decoder=None), "the key 'decoder' (object) is missing"),
        (broken(model__byte_fallback=True), "sets byte_fallback"),
        (broken(model__vocab=["a", "b"]), "model: vocab is ['a', 'b'], expected an object"),
        (broken(model__vocab={}), "model: vocab is empty"),
        (broken(model__vocab={"a": 0, "b": 0}), "ids that are repeated or outside 0 to 1,048,575"),
        (broken(model__vocab={"a": -1}), "ids that are repeated or outside 0 to 1,048,575"),
        (broken(model__vocab={"a": 1 << 40}), "ids that are repeated or outside 0 to 1,048,575"),
        (broken(model__vocab={"a": "0"}), "an id that is not an integer"),
        (broken(model__merges=["he llo"]), "merges has the pair 'he llo', which is not in vocab"),
        (broken(model__merges=["h e y"]), "an entry that is not a pair of tokens"),
        (broken(model__merges=[3]), "an entry that is not a pair of tokens"),
        (broken(normalizer={"type": "Unheard"}), "the normalizer 'Unheard' is not supported (NFC or none is)"),
        (broken(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}), "a Sequence of"),
        (broken(pre_tokenizer=None), "the key 'pre_tokenizer' (object) is missing"),
        (broken(pre_tokenizer__pretokenizers__1__add_prefix_space=True), "must have add_prefix_space and"),
        (broken(normalizer={"type": "Lowercase"}), "the normalizer 'Lowercase' is not supported"),
        (broken(model__merges=[], model__vocab={"a": 0}), "loses or changes text"),
        (broken(added_tokens=[{"id": 1 << 30, "content": "<x>"}]), "invalid id 1073741824"),
        (broken(added_tokens=[{"id": 300, "content": ""}]), "is not a string of 1 to 100 characters"),
        (broken(added_tokens=[{"id": "300", "content": "<x>"}]), "the added token '<x>' has the invalid id '300'"),
        (broken(added_tokens=[{"id": 300, "content": "<x>", "lstrip": True}]), "strips the text around it"),
        (broken(added_tokens=["<x>"]), "an added token is not an object"),
    ],
)
def test_a_broken_file_is_one_clear_line(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        Tokenizer.from_folder(write_tokenizer(tmp_path, values))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "tokenizer.json" in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"model": NaN}', b"null"])
def test_invalid_json_is_one_clear_line(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(raw)
    with pytest.raises(
        ModelError,
        match=r"tokenizer\.json.* (is|contains|cannot) .+[:;] (restore it from the model's source|get the file again)",
    ):
        Tokenizer.from_folder(tmp_path)


def test_a_truncated_file_never_loads(tmp_path: Path) -> None:
    whole = json.dumps(tokenizer_values())
    for end in range(0, len(whole), 97):
        (tmp_path / "tokenizer.json").write_text(whole[:end])
        with pytest.raises(ModelError):
            Tokenizer.from_folder(tmp_path)


def test_a_missing_file_says_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no tokenizer\.json: copy it there from the model's source"):
        Tokenizer.from_folder(tmp_path)


def test_merges_may_be_written_as_pairs(tmp_path: Path, tiny: Tokenizer) -> None:
    values = tokenizer_values()
    values["model"]["merges"] = [merge.split(" ") for merge in values["model"]["merges"]]
    assert Tokenizer.from_folder(write_tokenizer(tmp_path, values)).encode("hello wo") == tiny.encode("hello wo")
