"""Pipelines, patterns, vocabularies and merges in tokenizer.json."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from tests.fuzz import mutations
from tests.fuzz.base import QUESTION, Base, manifest_with, parsed
from tests.fuzz.case import MODEL, OK, Case, Command, Files, command

NAME = "tokenizers"
FILE = "tokenizer.json"
PATTERNS = (
    *(
        r"\s+",
        "(a+)+$",
        "(a|a)*b",
        "(.*)*x",
        r"(\w+\s?)*$",
        "(?=(a+))a*b",
        r"(?<=a{1,100})b",
        "x{65535}",
        "(x{999}){999}",
    ),
    *("((((((((((a?){30}){30}){30}){30}){30}))))))", "[", "(", "*", "", "(?R)", "(?i)ß", r"\p{L}|\p{N}", "|", "^", "$"),
    *("(?<n>a)\\k<n>", "(" * 500 + "a" + ")" * 500, "a" * 20_000, r"[\x{0}-\x{10FFFF}]", ".{0,100000}", "(?s:.)*?\\z"),
)
_TEXTS = ("hi there", "a" * 3_000, "a" * 3_000 + "!", "é漢👍 \t\n" * 50, "hello hello ünï\u0301code", "A1 b2\n\nc3")


def ask_model(random: Random | None = None) -> Command:
    """Return a command that sends a prompt to the model with the tokenizer."""
    text = "hi there" if random is None else random.choice(_TEXTS)
    return command("-p", text, "-m", "{case}/model", *QUESTION, "--json", codes=(OK, MODEL, 4), json=True)


def files_of(tokenizer: bytes, base: Base) -> Files:
    """Return a tokenizer in a model folder, with its correct checksum in the manifest."""
    return {
        f"model/{FILE}": tokenizer,
        "model/manifest.json": manifest_with(parsed(base.model, "manifest.json"), {FILE: tokenizer}),
    }


def make(random: Random, number: int, base: Base) -> Case:
    """Make one case."""
    values = parsed(base.model, FILE)
    maker = random.choice((_pipeline, _pipeline, _pipeline, _vocabulary, _vocabulary, _added, _any))
    maker(random, values)
    data = mutations.dumps(random, values) if maker is _any else json.dumps(values).encode("utf-8", "surrogatepass")
    if random.random() < 0.05:
        data = mutations.mutate_bytes(random, data)
    asked = ask_model(random)
    commands = (asked, asked) if random.random() < 0.1 else (asked,)  # the second reads the cached tables
    title = maker.__name__.strip("_")
    return Case(NAME, number, title, files_of(data, base), commands, copies=(("model", base.model),))


def pattern(random: Random) -> dict[str, str]:
    """Return a pattern of a normaliser or a pre-tokenizer."""
    made = random.choice(PATTERNS)
    return random.choice(({"Regex": made}, {"Regex": made}, {"String": made[:50]}, {"String": ""}, {"Regex": "^"}))


def normaliser(random: Random, depth: int = 3) -> Any:
    """Return a normaliser of the library with unusual values."""
    kind = random.randrange(12 if depth else 10)
    if kind == 0:
        return {"type": random.choice(("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt", "StripAccents", "nope"))}
    if kind in (1, 2):
        content = random.choice(("", "a", "aa", "xx" * 50, "aaaaaaaa" * 1_000, "\0", "\ud83d"))
        return {"type": "Replace", "pattern": pattern(random), "content": content}
    if kind == 3:
        blob = random.choice(("", "AAAA", "/////w==", "AQAAAP////8=", "A" * 4_000, "!!"))
        return {"type": "Precompiled", "precompiled_charsmap": blob}
    if kind == 4:
        return {"type": "Prepend", "prepend": random.choice(("", "▁", "x" * 10_000))}
    if kind == 5:
        return {"type": "BertNormalizer", **{key: random.choice((True, False, None)) for key in _BERT}}
    if kind == 6:
        return {"type": "Strip", "strip_left": True, "strip_right": random.choice((True, 1, None))}
    if kind == 7:
        return {"type": "ByteLevel"}
    if kind == 8:
        return mutations.value(random)
    if kind == 9:
        return None
    count = random.choice((0, 1, 2, 5, 20, 100))
    return {"type": "Sequence", "normalizers": [normaliser(random, depth - 1) for _ in range(count)]}


_BERT = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")
_BEHAVIOURS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous", "nope")


def splitter(random: Random, depth: int = 3) -> Any:
    """Return a pre-tokenizer."""
    kind = random.randrange(12 if depth else 10)
    if kind in (0, 1, 2):
        behaviour = random.choice(_BEHAVIOURS)
        invert = random.choice((True, False))
        return {"type": "Split", "pattern": pattern(random), "behavior": behaviour, "invert": invert}
    if kind == 3:
        return {"type": "ByteLevel", **{key: random.choice((True, False)) for key in _BYTES}}
    if kind == 4:
        return {"type": random.choice(("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts", "nope"))}
    if kind == 5:
        return {"type": "Metaspace", "replacement": random.choice(("▁", "", "ab", "\0")), "prepend_scheme": "always"}
    if kind == 6:
        return {"type": "Digits", "individual_digits": random.choice((True, 3))}
    if kind == 7:
        return {"type": "Punctuation", "behavior": random.choice(_BEHAVIOURS)}
    if kind == 8:
        return {"type": random.choice(("FixedLength", "CharDelimiterSplit")), "length": 0, "delimiter": "\0"}
    if kind == 9:
        return random.choice((None, mutations.value(random)))
    count = random.choice((0, 1, 2, 5, 50))
    return {"type": "Sequence", "pretokenizers": [splitter(random, depth - 1) for _ in range(count)]}


_BYTES = ("add_prefix_space", "trim_offsets", "use_regex")


def decoder(random: Random, depth: int = 2) -> Any:
    """Return a decoder."""
    kind = random.randrange(7 if depth else 6)
    if kind < 3:
        return {"type": "ByteLevel", **{key: random.choice((True, False)) for key in _BYTES}}
    if kind == 3:
        return {"type": random.choice(("ByteFallback", "Fuse", "BPEDecoder", "WordPiece", "CTC", "Metaspace", "nope"))}
    if kind == 4:
        return {"type": "Replace", "pattern": pattern(random), "content": "x" * random.choice((0, 1, 10_000))}
    if kind == 5:
        return random.choice((None, mutations.value(random)))
    return {"type": "Sequence", "decoders": [decoder(random, depth - 1) for _ in range(random.choice((0, 1, 3)))]}


def _pipeline(random: Random, values: dict[str, Any]) -> None:
    """Replace other parts than the model; sometimes keep those of Qwen2."""
    for key, made in (
        ("normalizer", normaliser),
        ("pre_tokenizer", splitter),
        ("decoder", decoder),
        ("post_processor", _post_processor),
    ):
        if random.random() < (0.5 if key in ("normalizer", "pre_tokenizer") else 0.15):
            values[key] = made(random)


def _post_processor(random: Random) -> Any:
    return random.choice(
        (
            {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 9, "pair": []},
            {"type": "TemplateProcessing", "single": "$A " * 2_000, "pair": "$A $B", "special_tokens": {}},
            {"type": "RobertaProcessing", "sep": ["x", 1 << 31], "cls": ["y", 0]},
            {"type": "Sequence", "processors": [{"type": "ByteLevel"}] * 50},
            mutations.value(random),
        )
    )


def _vocabulary(random: Random, values: dict[str, Any]) -> None:
    """Set unusual ids, tokens, merges and options of the model."""
    model = values["model"]
    vocab, merges = model["vocab"], model["merges"]
    for _ in range(random.choice((1, 1, 2, 4))):
        kind, token = random.randrange(10), random.choice(list(vocab))
        if kind == 0:
            vocab[token] = random.choice((*mutations.NUMBERS, "1", None, True, 5))
        elif kind == 1:
            del vocab[token]
        elif kind == 2:
            vocab[mutations.text(random)] = random.choice((len(vocab), 300, 1 << 23, (1 << 24) - 1, 1 << 32, -1, 0))
        elif kind == 3:
            merges.insert(
                random.randrange(len(merges)),
                random.choice((["a", "b"], "a b", "a  b", "ab", ["a"], ["a", "b", "c"], 5, None, ["zz", "zz"], [1, 2])),
            )
        elif kind == 4:
            merges.extend([random.choice(merges)] * random.choice((1, 5_000)))
        elif kind == 5:
            random.shuffle(merges)
        elif kind == 6:
            model[random.choice((*_OPTIONS, mutations.text(random)))] = mutations.value(random)
        elif kind == 7:
            model["type"] = random.choice(("WordPiece", "Unigram", "WordLevel", "bpe", None, 3))
        elif kind == 8:
            vocab.update({"x" * (number + 1): 400 + number for number in range(random.choice((10, 500, 3_000)))})
        else:
            vocab[token + token] = vocab.get(token, 1)


_OPTIONS = ("dropout", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges", "end_of_word_suffix")


def _added(random: Random, values: dict[str, Any]) -> None:
    """Set unusual added tokens."""
    listed = values["added_tokens"]
    for _ in range(random.choice((1, 2, 5))):
        token = dict(random.choice(listed)) if listed else {"id": 290, "content": "x"}
        key = random.choice(("id", "id", "content", "content", "special", "lstrip", "normalized", "single_word"))
        ids = (0, 1, 5, 281, 282, 287, 288, 289, 1 << 20, 1 << 23, (1 << 24) - 1, 1 << 24, 1 << 31, -1, 1.0, True, None)
        token[key] = random.choice(ids) if key == "id" else mutations.value(random)
        if random.random() < 0.5:
            listed.append(token)
        else:
            listed[random.randrange(len(listed)) if listed else 0 :] = [token]
    if random.random() < 0.05:
        listed.extend({"id": 300 + each, "content": f"<|{each}|>"} for each in range(3_000))


def _any(random: Random, values: dict[str, Any]) -> None:
    """Change any other values."""
    mutations.mutate_json(random, values)
