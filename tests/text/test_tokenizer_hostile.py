"""A hostile `tokenizer.json` is refused in one line, before the library sees it."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant import tokenizer_file
from qwchat.errors import ModelError, QwchatError, UsageError
from qwchat.messages import Message
from qwchat.text import tokenizer as tokenizer_module
from qwchat.text.template import ChatTemplate
from qwchat.text.template.encoding import encode_chat
from qwchat.text.tokenizer import Tokenizer, _alternation
from tests.clocks import PATIENCE_SECONDS
from tests.text.tiny import SPLIT, tokenizer_values, write_tokenizer
from tests.tiers import count, some

REPOSITORY = Path(__file__).resolve().parents[2]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
GROW = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
EXPLODING = {"type": "Split", "pattern": {"Regex": "(a|a)*b"}, "behavior": "Isolated", "invert": False}

ATTACKS: dict[str, tuple[str, Any, str]] = {
    "growing text": ("normalizer", {"type": "Sequence", "normalizers": [GROW, GROW, GROW]}, "normalizer 'Replace'"),
    "growing text once": ("normalizer", GROW, "normalizer 'Replace'"),
    "prepending": ("normalizer", {"type": "Prepend", "prepend": "a" * (1 << 20)}, "normalizer 'Prepend'"),
    "precompiled map": ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "/////////wA="}, "'Precompiled'"),
    "NFC within NFC": ("normalizer", {"type": "NFC", "normalizers": [GROW]}, "the parameter 'normalizers'"),
    "deep normaliser": (
        "normalizer",
        json.loads('{"type":"Sequence","normalizers":[' * 200 + "]}" * 200),
        "'Sequence'",
    ),
    "normaliser of no type": ("normalizer", {}, "normalizer None"),
    "normaliser of an odd type": ("normalizer", {"type": ["NFC"]}, "normalizer ['NFC']"),
    "normaliser that is text": ("normalizer", "NFC", "normalizer is not an object"),
    "exploding expression": (
        "pre_tokenizer",
        {"type": "Sequence", "pretokenizers": [EXPLODING, BYTE_LEVEL]},
        "the pattern of the pre_tokenizer Split is not supported",
    ),
    "expression of another key": (
        "pre_tokenizer",
        {"type": "Sequence", "pretokenizers": [{**EXPLODING, "pattern": {"String": SPLIT}}, BYTE_LEVEL]},
        "the pattern of the pre_tokenizer Split is not supported",
    ),
    "exploding decoder": ("decoder", {"type": "Replace", "pattern": {"Regex": "(a|a)*b"}, "content": ""}, "'Replace'"),
    "growing decoder": ("decoder", {"type": "Sequence", "decoders": [GROW]}, "the decoder 'Sequence' is not supported"),
    "panicking splitter": (
        "pre_tokenizer",
        {"type": "Sequence", "pretokenizers": [{"type": "FixedLength", "length": 0}, BYTE_LEVEL]},
        "pre_tokenizer 'FixedLength'",
    ),
    "too many splitters": ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 9}, "'Sequence'"),
    "post-processor": ("post_processor", {"type": "RobertaProcessing"}, "post_processor 'RobertaProcessing'"),
    "template of unknown ids": (
        "post_processor",
        {
            "type": "TemplateProcessing",
            "single": [],
            "pair": [],
            "special_tokens": {"x": {"id": "x", "ids": [1 << 40], "tokens": ["x"]}},
        },
        "post_processor TemplateProcessing is damaged",
    ),
    "model": ("model", {"type": "Unigram", "vocab": [["a", 0.0]] * 9, "unk_id": 1 << 62}, "model 'Unigram'"),
    "unknown parameter": ("model", {**tokenizer_values()["model"], "cache_capacity": 1 << 62}, "'cache_capacity'"),
    "dropout": ("model", {**tokenizer_values()["model"], "dropout": 1e308}, "sets dropout"),
    "half a character": ("model", {"vocab": {"\ud800": 0}, "merges": []}, "lone surrogate"),
    "empty token": ("model", {"vocab": {"": 0}, "merges": []}, "a token that is empty"),
    "long token": ("model", {"vocab": {"a" * 2000: 0}, "merges": []}, "longer than 1,024 characters"),
    "number that is true": ("model", {"vocab": {"a": True}, "merges": []}, "an id that is not an integer"),
    "huge id": ("model", {"vocab": {"a": 1 << 31}, "merges": []}, "outside 0 to 1,048,575"),
    "merges of nothing": ("model", {"vocab": {"a": 0}, "merges": ["a b"] * 9}, "'a b', which is not in vocab"),
    "deep merge": ("model", {"vocab": {"a": 0}, "merges": [[["a"] * 9] * 9]}, "not a pair of tokens"),
    "many added tokens": ("added_tokens", [{"id": 400 + n, "content": f"<{n}>"} for n in range(1025)], "at most 1,024"),
    "long added token": ("added_tokens", [{"id": 400, "content": "a" * 101}], "not a string of 1 to 100 characters"),
    "private added token": ("added_tokens", [{"id": 400, "content": "\U000f0000"}], "private-use"),
    "added token with another's id": (
        "added_tokens",
        [{"id": 5, "content": "<x>"}],
        "'<x>' and its id 5 conflict with another",
    ),
    "token with two ids": (
        "added_tokens",
        [{"id": 400, "content": "<x>"}, {"id": 401, "content": "<x>"}],
        "'<x>' and its id 401 conflict with another",
    ),
    "flag that is text": (
        "added_tokens",
        [{"id": 400, "content": "<x>", "lstrip": "(a|a)*b"}],
        "lstrip is '(a|a)*b', expected true or false",
    ),
}

DAMAGED = count(1500, 300)


def attacked(component: str, value: Any) -> dict[str, Any]:
    values = tokenizer_values()
    values[component] = value
    return values


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    component, value, message = ATTACKS[name]
    with pytest.raises(ModelError) as caught:
        Tokenizer.from_folder(write_tokenizer(tmp_path, attacked(component, value)))
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'tokenizer.json'}: ")
    assert message in text
    assert text.endswith((tokenizer_file.RESTORE, tokenizer_file.FAMILY))
    assert "\n" not in text
    assert len(text) < 300 + len(str(tmp_path))


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as only Linux does")


def run_with_little_memory(function: str, mebibytes: int, *arguments: object) -> list[str]:
    """Return the lines that a function of this file prints in a separate process. Standard error stays empty."""
    program = (
        "import sys, tokenizers, numpy, hypothesis, pytest; from tests.text import test_tokenizer_hostile as own; "
        f"own.limit_memory({mebibytes}); own.{function}(*sys.argv[1:])"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_SECONDS,
        check=False,
    )
    assert finished.stderr == ""
    assert finished.returncode == 0
    return finished.stdout.splitlines()


def limit_memory(mebibytes: int) -> None:
    import resource  # exists on POSIX systems only

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (mebibytes << 20),) * 2)


def outcome(folder: Path) -> str:
    try:
        found = Tokenizer.from_folder(folder)
        for text in ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "hello world\n", "漢字 1234 'tis <|im_end|>"):
            found.decode(found.encode(text))
    except QwchatError as error:
        return f"refused: {str(error)[:200]}"
    return "taken"


def attack_all(folder: str) -> None:
    for component, value, _ in ATTACKS.values():
        print(outcome(write_tokenizer(Path(folder), attacked(component, value)))[:8])


@needs_linux
def test_attacks_take_little_memory_and_print_nothing(tmp_path: Path) -> None:
    assert run_with_little_memory("attack_all", 256, tmp_path) == ["refused:"] * len(ATTACKS)


def load_all(*folders: str) -> None:
    for folder in folders:
        print(outcome(Path(folder)))


@pytest.mark.slow
@needs_linux
def test_sizes_are_checked_before_files_are_read(tmp_path: Path) -> None:
    limit = tokenizer_file.SIZE_LIMIT
    contents = {
        "sparse": b"",
        "objects": b"[" + b'{"":0},' * ((limit - 10) // 7) + b"0]",
        "deep": b"[" * limit,
        "digits": b"9" * limit,
    }
    for name, data in contents.items():
        (tmp_path / name).mkdir()
        with (tmp_path / name / "tokenizer.json").open("wb") as file:
            file.write(data)
            if name == "sparse":
                file.truncate(1 << 40)
    lines = run_with_little_memory("load_all", 1400, *(tmp_path / name for name in contents))
    assert "tokenizer.json is larger than the limit of 33,554,432 bytes" in lines[0]
    assert all(line.startswith("refused: ") for line in lines)
    assert "JSON values; get the file again" in lines[1]  # Counted, not parsed: parsed values would fill the memory.
    assert all("tokenizer.json cannot be parsed as JSON" in line or "JSON values" in line for line in lines[2:])


NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1 << 31, 1 << 63, 1e400, -0.5, "", "a", "\ud800", "Ġ" * 3000, [], {}, [[]], ["a"], [0]),
    *("BPE", "NFC", "ByteLevel", "Sequence", "Split", "Replace", "TemplateProcessing", "Precompiled", GROW, EXPLODING),
    *(BYTE_LEVEL, {"type": "NFC"}, {"type": "Metaspace"}, {"Regex": "(a|a)*b"}, {"String": ""}, {"type": "Fuse"}),
)


def mutated(dice: random.Random) -> Any:
    """Return the tiny tokenizer with a few values replaced, moved, duplicated or removed."""
    values: Any = tokenizer_values()
    for _ in range(dice.choice((1, 1, 2, 4))):
        target = values
        while True:
            keys: list[Any] = list(target) if isinstance(target, dict) else list(range(len(target)))
            if not keys:
                break
            key = dice.choice(keys)
            child = target[key]
            if isinstance(child, dict | list) and child and dice.random() < 0.75:
                target = child
                continue
            action = dice.randrange(4)
            if action == 0:
                del target[key]
            elif action == 1 and isinstance(target, list):
                target.insert(key, deepcopy(child))
            elif action == 2:
                target[key] = deepcopy(target[dice.choice(keys)])
            else:
                target[key] = deepcopy(dice.choice(NASTY))
            break
    return values


def fuzz(folder: str, seed: str, cases: str) -> None:
    dice = random.Random(int(seed))
    counts = {"taken": 0, "refused": 0}
    for _ in range(int(cases)):
        counts[outcome(write_tokenizer(Path(folder), mutated(dice))).partition(":")[0]] += 1
    print(json.dumps(counts))


@needs_linux
def test_damaged_files_neither_panic_nor_hang(tmp_path: Path) -> None:
    """Check that standard error stays empty: a panic of the library would print a message there."""
    (line,) = run_with_little_memory("fuzz", 512, tmp_path, 20_261_128, DAMAGED)
    counts = json.loads(line)
    assert counts["refused"] > DAMAGED // 3
    assert counts["taken"] > DAMAGED // 15


POST_PROCESSOR = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<|im_end|>": {"id": "<|im_end|>", "ids": [270], "tokens": ["<|im_end|>"]}},
}


@pytest.mark.parametrize(
    ("component", "value"),
    [
        ("normalizer", None),
        ("normalizer", {"type": "Sequence", "normalizers": []}),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}]}),
        ("post_processor", BYTE_LEVEL),
        ("post_processor", POST_PROCESSOR),
        ("post_processor", {"type": "Sequence", "processors": [BYTE_LEVEL, POST_PROCESSOR]}),
        ("truncation", {"max_length": 5, "stride": 9, "strategy": "LongestFirst", "direction": "Right"}),
        ("padding", {"strategy": {"Fixed": 1 << 40}, "pad_id": 1, "pad_token": "x"}),
        ("decoder", {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}),
    ],
)
def test_components_of_the_family_are_accepted(tmp_path: Path, tiny: Tokenizer, component: str, value: Any) -> None:
    found = Tokenizer.from_folder(write_tokenizer(tmp_path, attacked(component, value)))
    text = "hello world, hello wo " * 20
    assert found.encode(text) == tiny.encode(text)
    assert found.decode(found.encode(text)) == text
    composed = value in (None, {"type": "Sequence", "normalizers": []}) and component == "normalizer"
    assert (found.encode("e\u0301") == found.encode("é")) is not composed


@pytest.mark.parametrize("kept", [False, True])
def test_ids_are_compared_with_the_models_vocabulary(
    tmp_path: Path, tiny_folder: Path, tiny: Tokenizer, kept: bool
) -> None:
    cache = tmp_path if kept else None
    for _ in range(2):
        assert Tokenizer.from_folder(tiny_folder, cache, tiny.vocab_size).vocab_size == tiny.vocab_size
    with pytest.raises(ModelError) as caught:
        Tokenizer.from_folder(tiny_folder, cache, tiny.vocab_size - 1)
    assert str(caught.value) == (
        f"{tiny_folder / 'tokenizer.json'} has the token id 270, but config.json has a vocab_size of 270: "
        "restore both from the same model"
    )


def panicking() -> Any:
    """Return the library's tokenizer in a state in which its Rust code panics."""
    from tokenizers import Tokenizer as LibraryTokenizer
    from tokenizers import models, pre_tokenizers

    core = LibraryTokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.FixedLength(length=0)
    return core


@pytest.mark.parametrize("use", [lambda t: t.encode("hello"), lambda t: t.encode_prompt(["hello", [270]])])
@pytest.mark.parametrize("kept", [False, True])
def test_a_panic_becomes_an_error(
    tmp_path: Path, tiny_folder: Path, kept: bool, use: Callable[[Tokenizer], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2 if kept else 1):
        found = Tokenizer.from_folder(tiny_folder, tmp_path)
    found._library = panicking()
    with pytest.raises(ModelError) as caught:
        use(found)
    assert re.fullmatch(
        r"the tokenizer library failed \(PanicException: .+\): restore tokenizer\.json from the model's source",
        str(caught.value),
    )


def test_a_panic_while_a_file_is_loaded_becomes_an_error(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tokenizer_module, "_build_pipeline", lambda *_: panicking().encode("hello"))
    with pytest.raises(ModelError, match="the tokenizer library failed"):
        Tokenizer.from_folder(tiny_folder)


def test_ctrl_c_is_not_taken_for_a_panic() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenizer_module._call(interrupted)


def processor_seconds(function: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        started = time.thread_time()
        function()
        best = min(best, time.thread_time() - started)
    return best


@pytest.mark.parametrize(
    "unit",
    some(
        [
            *(
                "a",
                " ",
                "\n",
                "\r\n",
                " \n",
                "\t ",
                "a ",
                "  a",
                "1",
                "'",
                "'s",
                "é",
                "漢",
                "👍",
                "\x00",
                "he",
                "!",
                "<|im_end|>",
            ),
            *("e\u0301", "\u0301", "\u0316\u0301", "\u1100\u1161", "\u0344", "\u2126", "\ufb2c"),
        ],
        4,
    ),
)
@pytest.mark.slow
def test_repetitive_texts_take_linear_time(tiny: Tokenizer, unit: str) -> None:
    """Compare texts of 1 and 8 times the length: linear time grows by 8, quadratic time by 64."""
    short = unit * (10_000 // len(unit))
    once, eight_times = (processor_seconds(lambda text=text: tiny.encode(text)) for text in (short, short * 8))
    assert eight_times < 30 * once + 0.05


def test_many_control_tokens_are_found_as_fast_as_few() -> None:
    text = "a" * 30_000
    few, many = (re.compile(_alternation(sorted("a" * 60 + f"{n:04}" for n in range(count)))) for count in (5, 1000))
    assert processor_seconds(lambda: many.findall(text)) < 10 * processor_seconds(lambda: few.findall(text)) + 0.05


@given(st.sets(st.text("ab<|\n.", min_size=1, max_size=6), min_size=1, max_size=30), st.text("ab<|\n.", max_size=60))
def test_the_longest_control_token_is_found(contents: set[str], text: str) -> None:
    simple = "|".join(map(re.escape, sorted(contents, key=len, reverse=True)))
    assert re.findall(_alternation(sorted(contents)), text) == re.findall(simple, text)


def test_nested_control_tokens_compile() -> None:
    nested = ["a" * length for length in range(1, tokenizer_file.ADDED_LENGTH + 1)]
    assert re.findall(_alternation(nested), "a" * 150) == ["a" * 100, "a" * 50]


def test_a_conversation_that_uses_up_the_private_characters_is_refused(tiny: Tokenizer) -> None:
    every = "".join(map(chr, range(0xF0000, 0xFFFFE)))
    with pytest.raises(UsageError, match="the conversation has too many messages or private-use characters"):
        encode_chat(tiny, ChatTemplate(), [Message(role="user", content=every + "<")])
