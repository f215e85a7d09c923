"""Read vocabulary, special ids, chat template and sampling defaults from GGUF metadata, which may be hostile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from quant.errors import CheckpointError
from quant.json_fields import MAX_ID, JsonFields, is_int_between, is_unicode, short_repr
from quant.sources.gguf import tokenizer_keys as keys
from quant.sources.gguf.tokenizer_keys import TokenType
from quant.tokenizer_file import (
    ADDED_LIMIT,
    BYTE_OF,
    CONFIG_LIMIT,
    FAMILY,
    ID_LIMIT,
    MERGES_LIMIT,
    SIZE_LIMIT,
)

_REMEDY = "; download the file again"
_SUPPORTED = {TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED}
_MAX_CONTEXT = (1 << 24) - 1  # tokens
Item = TypeVar("Item")


@dataclass(frozen=True)
class AddedToken:
    """Token that is not merged from others, such as `<|im_end|>`.

    Attributes:
        token_id: its id.
        content: its text.
        special: whether it controls the model, so that it is left out when a reply is decoded.
    """

    token_id: int
    content: str
    special: bool


@dataclass(frozen=True)
class GgufTokenizer:
    """Tokenizer in the metadata of a GGUF file.

    Attributes:
        split: regular expression that splits texts.
        vocab: token in the byte-level alphabet -> id, without added tokens.
        merges: pairs of tokens joined by a space, in the order of their ranks.
        added: added tokens, by id.
        eos_ids: ids of the tokens that end a reply, the first one that of `tokenizer.ggml.eos_token_id`.
        bos_id: id of the token that begins a text, or None.
        padding_id: id of the token that pads batches, or None.
        adds_bos: whether an encoded text begins with the token `bos_id`.
        template: default chat template, or None.
        context: context length in tokens, or None.
        sampling: sampling defaults as in generation_config.json.
    """

    split: str
    vocab: dict[str, int]
    merges: list[str]
    added: list[AddedToken]
    eos_ids: list[int]
    bos_id: int | None
    padding_id: int | None
    adds_bos: bool
    template: str | None
    context: int | None
    sampling: dict[str, int | float]

    def content(self, token_id: int | None) -> str | None:
        """Return the content of an added token, or None."""
        return next((token.content for token in self.added if token.token_id == token_id), None)


def read_tokenizer(metadata: Mapping[str, Any], where: str) -> GgufTokenizer:
    """Read the tokenizer of a GGUF file. Merges are not checked.

    Args:
        metadata: values by key.
        where: name of the file for messages.

    Raises:
        CheckpointError: the tokenizer is damaged, exceeds a limit, or does not belong to the Qwen family.
    """
    return _TokenizerReader(metadata, where).read()


class _TokenizerReader:
    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self._metadata, self._where = metadata, where
        self._fields = JsonFields(metadata, where, CheckpointError, _REMEDY)

    def _refuse(self, problem: str, remedy: str = _REMEDY) -> NoReturn:
        raise CheckpointError(f"{self._where}: {problem}{remedy}")

    def read(self) -> GgufTokenizer:
        split = self._read_split()
        vocab, added = self._read_tokens()
        merges = self._read_list(keys.MERGES, str, MERGES_LIMIT)
        if sum(map(len, merges)) + sum(map(len, vocab)) > SIZE_LIMIT:
            self._refuse(f"the tokenizer has more than {SIZE_LIMIT:,} characters")
        known = {*vocab.values(), *(token.token_id for token in added)}
        bos_id, padding_id = self._read_id(keys.BOS_ID, known), self._read_id(keys.PADDING_ID, known)
        adds_bos = self._fields.boolean(keys.ADD_BOS, False)
        if adds_bos and not any(token.token_id == bos_id for token in added):
            self._refuse(f"{keys.ADD_BOS} is true, but {keys.BOS_ID} does not name a control token")
        return GgufTokenizer(
            split,
            vocab,
            merges,
            added,
            self._read_eos_ids(added, known),
            bos_id,
            padding_id,
            adds_bos,
            self._read_template(),
            self._read_context(),
            self._read_sampling(),
        )

    def _read_split(self) -> str:
        """Return the regular expression of the pre-tokenizer."""
        model = self._fields.required_text(keys.MODEL)
        if model != keys.BYTE_LEVEL_BPE:
            self._refuse(f"{keys.MODEL} is {short_repr(model)}, expected {keys.BYTE_LEVEL_BPE}", f"; {FAMILY}")
        name = self._fields.text(keys.PRE_TOKENIZER, None)
        if name is None:
            self._refuse(f"{keys.PRE_TOKENIZER} is missing, as in files of 2024 and before", "; get a newer file")
        if name not in keys.SPLITS:
            known = " or ".join(keys.SPLITS)
            self._refuse(f"{keys.PRE_TOKENIZER} is {short_repr(name)}, expected {known}", f"; {FAMILY}")
        return keys.SPLITS[name]

    def _read_list(self, key: str, kind: type[Item], most: int) -> list[Item]:
        """Return the list under `key`, of 1 to `most` items of one type."""
        values = self._metadata.get(key)
        if values is None:
            self._refuse(f"the key {key} (list) is missing")
        if not isinstance(values, list) or not 1 <= len(values) <= most or set(map(type, values)) != {kind}:
            self._refuse(f"{key} is not a list of 1 to {most:,} values of the type {kind.__name__}")
        return values

    def _read_tokens(self) -> tuple[dict[str, int], list[AddedToken]]:
        """Return the vocabulary and the added tokens, without unused ids."""
        tokens = self._read_list(keys.TOKENS, str, ID_LIMIT)
        types = self._read_list(keys.TOKEN_TYPES, int, ID_LIMIT)
        if len(types) != len(tokens):
            self._refuse(f"{keys.TOKENS} lists {len(tokens):,} tokens, but {keys.TOKEN_TYPES} {len(types):,} types")
        vocab, added, seen = dict[str, int](), list[AddedToken](), dict[str, int]()
        for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True)):
            if kind == TokenType.UNUSED or (kind != TokenType.CONTROL and token == keys.padding_token(token_id)):
                continue
            if kind not in _SUPPORTED:
                self._refuse(f"token {token_id:,} ({short_repr(token)}) has the type {short_repr(kind)}", f"; {FAMILY}")
            if (first := seen.setdefault(token, token_id)) != token_id:
                self._refuse(f"the tokens {first:,} and {token_id:,} are both {short_repr(token)}")
            if kind == TokenType.NORMAL:
                vocab[token] = token_id
            else:
                special = kind == TokenType.CONTROL and token not in keys.TEXT_TOKENS
                added.append(AddedToken(token_id, token, special))
        if not is_unicode("".join(seen)):
            self._refuse(f"{keys.TOKENS} has a token with a lone surrogate")
        if len(added) > ADDED_LIMIT:
            self._refuse(f"{len(added):,} tokens are of the type control or user-defined, more than {ADDED_LIMIT:,}")
        missing = next((byte[0] for character, byte in BYTE_OF.items() if character not in vocab), None)
        if missing is not None:
            self._refuse(f"{keys.TOKENS} has no token for the byte 0x{missing:02X}")
        return vocab, added

    def _read_id(self, key: str, known: set[int]) -> int | None:
        """Return a token id; None if it is missing or names an unused id."""
        if self._metadata.get(key) is None:
            return None
        token_id = self._fields.integer(key, 0, ID_LIMIT - 1)
        if token_id not in known and token_id >= len(self._metadata[keys.TOKENS]):
            self._refuse(f"{key} is {token_id:,}, which is not in {keys.TOKENS}")
        return token_id if token_id in known else None

    def _read_eos_ids(self, added: list[AddedToken], known: set[int]) -> list[int]:
        """Return the ids of the tokens that end a reply."""
        named = [self._read_id(key, known) for key in (keys.EOS_ID, *keys.FURTHER_EOS_IDS)]
        id_of = {token.content: token.token_id for token in added if token.special}
        ids = [token_id for token_id in (*named, *map(id_of.get, keys.END_TOKENS)) if token_id is not None]
        if not ids:
            self._refuse(f"neither {keys.EOS_ID} nor another key names the token that ends a reply")
        return list(dict.fromkeys(ids))

    def _read_template(self) -> str | None:
        """Return the default chat template. Its variants for other uses are left out."""
        value = self._metadata.get(keys.CHAT_TEMPLATE, self._metadata.get(keys.DEFAULT_CHAT_TEMPLATE))
        if value is None:
            return None
        if not isinstance(value, str) or len(value) > CONFIG_LIMIT or not is_unicode(value):
            self._refuse(f"{keys.CHAT_TEMPLATE} is not a text of at most {CONFIG_LIMIT:,} characters")
        return value

    def _read_context(self) -> int | None:
        """Return the context length, or None if the file does not say it."""
        value = self._metadata.get(f"{self._metadata.get('general.architecture')}.context_length")
        return value if is_int_between(value, 1, _MAX_CONTEXT) else None

    def _read_sampling(self) -> dict[str, int | float]:
        """Return the sampling defaults of the file."""
        found: dict[str, int | float] = {}
        for key, (name, low, high) in keys.SAMPLING.items():
            value = self._fields.optional_number(key, low, high)
            if value is not None:
                found[name] = value
        if self._metadata.get(keys.TOP_K) is not None:
            found["top_k"] = self._fields.integer(keys.TOP_K, 0, MAX_ID)
        return found
