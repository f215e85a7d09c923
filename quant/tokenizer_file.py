"""Read `tokenizer.json`, which may be hostile.

The file describes a pipeline of components. Some components of the `tokenizers` library can take any amount of memory
or time, or end the process. Therefore the library never sees the pipeline of the file: only the components of the Qwen
family are accepted, and `qwchat.text.tokenizer` builds the library's pipeline from constants. Only the vocabulary, the
merges and the added tokens come from the file, with limits on their number and length.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NoReturn

from quant.json_fields import JsonFields, is_int_between, is_unicode, short_repr
from quant.safe_files import ErrorFactory, parse_json_object

SIZE_LIMIT = 32 << 20  # bytes; the largest file of the Qwen family has 12 MB
ID_LIMIT = 1 << 20  # the Qwen family has 151,936 ids
MERGES_LIMIT = 1 << 20
TOKEN_LENGTH = 1_024  # characters; Qwen2's longest token has 128
ADDED_LIMIT = 1_024  # tokens; Qwen3 has 26
ADDED_LENGTH = 100  # characters
CONFIG_LIMIT = 4 << 20  # bytes; tokenizer_config.json with every added token of a large vocabulary reaches 1 MB
PRIVATE = "\U000f0000"  # first of the characters that `encode_chat` substitutes for those of control tokens

PATTERNS = (
    # Qwen1.5, Qwen2, Qwen2.5, QwQ, Qwen3 and the distillations of DeepSeek-R1
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
"""Accepted regular expressions for splitting text. Each takes linear time."""

RESTORE = "restore it from the model's source"
FAMILY = "only tokenizers of the Qwen family are supported"
_UNSUPPORTED_OPTIONS = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
_MODEL_KEYS = {"type", "vocab", "merges", "fuse_unk", "ignore_merges", *_UNSUPPORTED_OPTIONS}
_BYTE_LEVEL_KEYS = {"type", "add_prefix_space", "trim_offsets", "use_regex"}


def _byte_alphabet() -> dict[str, bytes]:
    """Return character -> byte of the byte-level alphabet of GPT-2. Printable Latin-1 stands for itself."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(0x100) if byte not in set(printable)]
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    return alphabet | {chr(0x100 + index): bytes([byte]) for index, byte in enumerate(moved)}


BYTE_OF = _byte_alphabet()
"""Character -> byte of the alphabet of tokens."""


@dataclass(frozen=True)
class TokenizerDefinition:
    """Content of a tokenizer file.

    Attributes:
        normalises_nfc: whether texts are normalised to NFC first.
        pattern: entry of `PATTERNS` that splits texts.
        vocab: token in the byte-level alphabet -> id.
        merges: pairs of tokens in the order of their ranks.
        ignore_merges: whether a piece that is itself a token is not merged.
        special_ids: content of each added token -> id.
        text_tokens: contents of the added tokens that the file does not call special.
        first_id: id of the token that the post-processor puts before a text, or None.
    """

    normalises_nfc: bool
    pattern: str
    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    ignore_merges: bool
    special_ids: dict[str, int]
    text_tokens: frozenset[str]
    first_id: int | None


def parse(data: bytes, where: str, error: ErrorFactory) -> TokenizerDefinition:
    """Parse and check the content of a tokenizer file. `truncation` and `padding` are ignored.

    Args:
        data: content of the file.
        where: name of the file for messages.
        error: class of the exception if the content is not JSON, exceeds a limit, or has an unsupported component.
    """
    return check(parse_json_object(data, where, error), where, error)


def check(values: dict[str, Any], where: str, error: ErrorFactory) -> TokenizerDefinition:
    """Check the parsed content of a tokenizer file; see `parse`."""
    return _DefinitionReader(where, error).read(values)


class _DefinitionReader:
    def __init__(self, where: str, error: ErrorFactory) -> None:
        self._where, self._error = where, error

    def _refuse(self, problem: str, remedy: str = RESTORE) -> NoReturn:
        raise self._error(f"{self._where}: {problem}: {remedy}")

    def read(self, values: dict[str, Any]) -> TokenizerDefinition:
        fields = self._fields(values)
        normalises_nfc = self._read_normalizer(values.get("normalizer"))
        pattern = self._read_pattern(fields.mapping("pre_tokenizer"))
        self._check_byte_level(fields.mapping("decoder"), "decoder")
        vocab, merges, ignores = self._read_model(fields.mapping("model"))
        special_ids, text_tokens = self._read_added_tokens(values.get("added_tokens") or [], vocab)
        post_processor = values.get("post_processor")
        self._check_post_processor(post_processor, {*vocab.values(), *special_ids.values()})
        first_id = _first_id(post_processor)
        return TokenizerDefinition(normalises_nfc, pattern, vocab, merges, ignores, special_ids, text_tokens, first_id)

    def _fields(self, values: dict[str, Any], name: str = "") -> JsonFields:
        """Return typed access to an object. `name` is its name in messages."""
        return JsonFields(values, f"{self._where}: {name}" if name else self._where, self._error, f": {RESTORE}")

    def _object(self, value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._refuse(f"{name} is not an object")
        return value

    def _check_keys(self, value: dict[str, Any], name: str, known: Collection[str]) -> None:
        unknown = next((key for key in value if key not in known), None)
        if unknown is not None:
            self._refuse(f"{name} has the parameter {short_repr(unknown)}, which is not supported", FAMILY)

    def _read_normalizer(self, value: Any) -> bool:
        """Return whether the normaliser is NFC. Refuse every other one."""
        parts = [] if value is None else [value]
        if isinstance(value, dict) and value.get("type") == "Sequence" and isinstance(value.get("normalizers"), list):
            self._check_keys(value, "normalizer Sequence", ("type", "normalizers"))
            parts = value["normalizers"]
        for part in parts:
            kind = self._object(part, "normalizer").get("type")
            if kind != "NFC":
                self._refuse(f"the normalizer {short_repr(kind)} is not supported (NFC or none is)", FAMILY)
            self._check_keys(part, "normalizer NFC", ("type",))
        return bool(parts)

    def _read_pattern(self, value: dict[str, Any]) -> str:
        """Return the regular expression of the pre-tokenizer after checking its other parts."""
        parts = value.get("pretokenizers")
        if value.get("type") != "Sequence" or not isinstance(parts, list) or len(parts) != 2:
            kind = short_repr(value.get("type"))
            self._refuse(f"the pre_tokenizer {kind} is not supported (a Sequence of Split and ByteLevel is)", FAMILY)
        self._check_keys(value, "pre_tokenizer", ("type", "pretokenizers"))
        split, byte_level = (self._object(part, "a part of pre_tokenizer") for part in parts)
        if split.get("type") != "Split":
            self._refuse(f"the pre_tokenizer {short_repr(split.get('type'))} is not supported (Split is)", FAMILY)
        self._check_keys(split, "pre_tokenizer Split", ("type", "pattern", "behavior", "invert"))
        pattern = split.get("pattern")
        if not isinstance(pattern, dict) or list(pattern) != ["Regex"] or pattern["Regex"] not in PATTERNS:
            self._refuse("the pattern of the pre_tokenizer Split is not supported (that of the Qwen family is)", FAMILY)
        if split.get("behavior") != "Isolated" or split.get("invert") is not False:
            self._refuse("the pre_tokenizer Split must have the behavior Isolated and invert false", FAMILY)
        self._check_byte_level(byte_level, "pre_tokenizer")
        if byte_level.get("add_prefix_space") is not False or byte_level.get("use_regex") is not False:
            self._refuse("the pre_tokenizer ByteLevel must have add_prefix_space and use_regex false", FAMILY)
        regex: str = pattern["Regex"]
        return regex

    def _check_byte_level(self, value: dict[str, Any], name: str) -> None:
        if value.get("type") != "ByteLevel":
            self._refuse(f"the {name} {short_repr(value.get('type'))} is not supported (ByteLevel is)", FAMILY)
        self._check_keys(value, f"{name} ByteLevel", _BYTE_LEVEL_KEYS)
        for key in _BYTE_LEVEL_KEYS - {"type"}:
            self._fields(value, f"{name} ByteLevel").boolean(key, False)

    def _check_post_processor(self, value: Any, known_ids: set[int]) -> None:
        """Check the post-processor. It is not applied, since only the chat template writes control tokens."""
        if value is None:
            return
        kind = self._object(value, "post_processor").get("type")
        if kind == "ByteLevel":
            self._check_byte_level(value, "post_processor")
        elif kind == "TemplateProcessing":
            self._check_keys(value, "post_processor TemplateProcessing", ("type", "single", "pair", "special_tokens"))
            if not _is_template(value, known_ids):
                self._refuse("the post_processor TemplateProcessing is damaged")
        elif kind == "Sequence" and isinstance(parts := value.get("processors"), list) and len(parts) <= 2:
            self._check_keys(value, "post_processor Sequence", ("type", "processors"))
            for part in parts:
                if self._object(part, "a part of post_processor").get("type") == "Sequence":
                    self._refuse("post_processor has a Sequence within a Sequence", FAMILY)
                self._check_post_processor(part, known_ids)
        else:
            self._refuse(
                f"the post_processor {short_repr(kind)} is not supported (ByteLevel and TemplateProcessing are)", FAMILY
            )

    def _read_model(self, value: dict[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]], bool]:
        if value.get("type", "BPE") != "BPE":
            self._refuse(f"the model {short_repr(value.get('type'))} is not supported (byte-level BPE is)", FAMILY)
        self._check_keys(value, "model", _MODEL_KEYS)
        for option in _UNSUPPORTED_OPTIONS:
            if value.get(option):
                self._refuse(f"model sets {option}, which is not supported", FAMILY)
        fields = self._fields(value, "model")
        fields.boolean("fuse_unk", False)
        vocab = self._read_vocab(fields.mapping("vocab"))
        return vocab, self._read_merges(value.get("merges"), vocab), fields.boolean("ignore_merges", False)

    def _read_vocab(self, vocab: dict[str, Any]) -> dict[str, int]:
        if not vocab:
            self._refuse("model: vocab is empty")
        ids = vocab.values()
        if not all(type(token_id) is int for token_id in ids):
            self._refuse("model: vocab has an id that is not an integer")
        if min(ids) < 0 or max(ids) >= ID_LIMIT or len(set(ids)) != len(vocab):
            self._refuse(f"model: vocab has ids that are repeated or outside 0 to {ID_LIMIT - 1:,}")
        if min(map(len, vocab)) == 0 or max(map(len, vocab)) > TOKEN_LENGTH:
            self._refuse(f"model: vocab has a token that is empty or longer than {TOKEN_LENGTH:,} characters")
        if not is_unicode("".join(vocab)):
            self._refuse("model: vocab has a token with a lone surrogate")
        return vocab

    def _read_merges(self, listed: Any, vocab: dict[str, int]) -> list[tuple[str, str]]:
        if not isinstance(listed, list) or len(listed) > MERGES_LIMIT:
            self._refuse(f"model: merges is not a list of at most {MERGES_LIMIT:,} pairs")
        merges = [tuple(each.split(" ")) if isinstance(each, str) else each for each in listed]
        for pair in merges:
            if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
                self._refuse("model: merges has an entry that is not a pair of tokens")
            if not (pair[0] in vocab and pair[1] in vocab and pair[0] + pair[1] in vocab):
                self._refuse(f"model: merges has the pair {short_repr(' '.join(pair))}, which is not in vocab")
        return [(left, right) for left, right in merges]

    def _read_added_tokens(self, listed: Any, vocab: dict[str, int]) -> tuple[dict[str, int], frozenset[str]]:
        if not isinstance(listed, list) or len(listed) > ADDED_LIMIT:
            self._refuse(f"added_tokens is not a list of at most {ADDED_LIMIT:,} tokens")
        content_of = {token_id: token for token, token_id in vocab.items()}
        ids, special_ids, text_tokens = vocab.copy(), dict[str, int](), set[str]()
        for token in listed:
            content, token_id = (self._object(token, "an added token").get(key) for key in ("content", "id"))
            if not isinstance(content, str) or not 0 < len(content) <= ADDED_LENGTH or not is_unicode(content):
                self._refuse(f"an added token is not a string of 1 to {ADDED_LENGTH} characters")
            if max(content) >= PRIVATE:
                self._refuse("an added token has a private-use character (plane 15 or 16)")
            if not is_int_between(token_id, 0, ID_LIMIT - 1):
                self._refuse(f"the added token {short_repr(content)} has the invalid id {short_repr(token_id)}")
            if ids.setdefault(content, token_id) != token_id or content_of.setdefault(token_id, content) != content:
                self._refuse(
                    f"the added token {short_repr(content)} and its id {token_id:,} conflict with another token"
                )
            flags = self._fields(token, f"the added token {short_repr(content)}")
            strips = [flags.boolean(name, False) for name in ("lstrip", "rstrip", "single_word")]
            flags.boolean("normalized", False)
            if not flags.boolean("special", False):
                text_tokens.add(content)
            if any(strips):
                problem = f"the added token {short_repr(content)} strips the text around it"
                self._refuse(f"{problem}, which is not supported", FAMILY)
            special_ids[content] = token_id
        return special_ids, frozenset(text_tokens)


def _first_id(post_processor: Any) -> int | None:
    """Return the id of the token that a checked post-processor puts before a text, or None."""
    for part in (post_processor or {}).get("processors", [post_processor]):
        if part is not None and part["type"] == "TemplateProcessing" and part["single"]:
            first = part["single"][0].get("SpecialToken")
            ids = part["special_tokens"][first["id"]]["ids"] if first else []
            return ids[0] if ids else None
    return None


def _is_template(value: dict[str, Any], known_ids: set[int]) -> bool:
    """Return whether a TemplateProcessing is well-formed and all its ids are known."""
    special = value.get("special_tokens")
    if not isinstance(special, dict) or len(special) > ADDED_LIMIT:
        return False
    for token in special.values():
        ids = token.get("ids") if isinstance(token, dict) else None
        if not isinstance(ids, list) or len(ids) > ADDED_LIMIT or not all(type(each) is int for each in ids):
            return False
        if not known_ids.issuperset(ids):
            return False
    return all(_is_sequence(value.get(name), special) for name in ("single", "pair"))


def _is_sequence(items: Any, special: dict[str, Any]) -> bool:
    if not isinstance(items, list) or len(items) > ADDED_LIMIT:
        return False
    for item in items:
        kind, content = next(iter(item.items())) if isinstance(item, dict) and len(item) == 1 else ("", None)
        name = content.get("id") if isinstance(content, dict) else None
        if not isinstance(name, str) or name not in (special if kind == "SpecialToken" else ("A", "B")):
            return False
        if kind not in ("SpecialToken", "Sequence"):
            return False
    return True
