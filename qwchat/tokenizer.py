"""Byte-level BPE from `tokenizer.json`: text to token ids and back.

The merging itself is done by the `tokenizers` library. Two things are kept out of its hands:

- Added tokens (`<|im_end|>` and its like). The library finds them in any text it is given, so that a person who types
  `<|im_end|>` would end the turn. Here the library never learns of them: `encode` turns text into text tokens only, and
  control tokens enter a prompt through `encode_prompt`, as ids.
- Decoding. A token is a string of bytes (`token_bytes`), which need not be whole characters. Joining the bytes first is
  what makes streaming equal to one-shot decoding (see `qwchat.detokenizer`).

Decoding gives back the encoded text exactly, up to the Unicode normal form (NFC) that the Qwen2 tokenizer applies.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwchat import vocabulary
from qwchat.errors import ModelError, UsageError

if TYPE_CHECKING:
    import tokenizers

FILE_NAME = "tokenizer.json"
SIZE_LIMIT = 256 << 20  # bytes; the real Qwen2 file has 7 MB
ID_LIMIT = 1 << 24
PROBE = "A  b1é漢👍\t\x00\n\n"  # what a sound tokenizer gives back: capitals, blanks, characters of 1 to 4 bytes


class Tokenizer:
    """The tokenizer of one model. Made by `from_folder`; safe to share between threads.

    Attributes:
        vocab_size: one past the highest token id. The logits of a model may have more rows (Qwen2-7B: 152,064 against
            151,646); the rows from here on have no token and must never be sampled.
        special_ids: content to id of every added token, those that the file calls special and the others.
        control_pattern: matches any added token in a rendered template, the longest first.
        control_characters: the signs that added tokens are written with; without them none can be written.
    """

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        vocab_size: int,
        special_ids: dict[str, int],
        tables: vocabulary.Tables | None = None,
        build: Callable[[], tokenizers.Tokenizer] | None = None,
    ) -> None:
        self.vocab_size = max(vocab_size, *(token_id + 1 for token_id in special_ids.values()), 0)
        self.special_ids = special_ids
        longest_first = sorted(special_ids, key=len, reverse=True)
        self.control_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.control_characters = frozenset("".join(map(_signs, special_ids)))
        # With tables, the library's part normalises and splits; `build` makes a whole one of it, should it be needed.
        self._core, self._tables, self._build = core, tables, build
        self._bytes = {token_id: content.encode() for content, token_id in special_ids.items()}

    @classmethod
    def from_folder(cls, folder: str | Path, cache: Path | None = None) -> Tokenizer:
        """Read `tokenizer.json` of a model folder or checkpoint.

        Args:
            folder: where the file is.
            cache: a folder of the user's own, for tables that make the next start quicker.

        Raises:
            ModelError: the file is missing, broken, or describes another kind of tokenizer.
        """
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise ModelError(f"{folder} has no {FILE_NAME}: copy it there from the model's source")
        try:
            if path.stat().st_size > SIZE_LIMIT:
                raise ModelError(f"{path} is larger than {SIZE_LIMIT >> 20} MiB: restore it from the model's source")
            return _read(path, cache)
        except ModelError:
            raise
        # `tokenizers` raises bare Exception for whatever it does not like in a file.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise ModelError(f"{path} cannot be used ({reason}): restore it from the model's source") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, which is all text: a control token typed in it becomes ordinary tokens.

        Raises:
            UsageError: the text holds a lone surrogate, which is no Unicode character.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the text holds half a character (lone surrogate U+{ord(text[error.start]):04X}) at position "
                f"{error.start}: remove it, or decode the text from its source with the right encoding"
            ) from error
        quick = None if self._tables is None else self._encode_with(self._tables, text)
        ids: list[int] = self._whole().encode(text, add_special_tokens=False).ids if quick is None else quick
        return ids

    def _encode_with(self, tables: vocabulary.Tables, text: str) -> list[int] | None:
        """What the library would give; None where it is quicker."""
        if self._build is None or len(text) > tables.longest_text:
            return None
        normalised = text if self._core.normalizer is None else self._core.normalizer.normalize_str(text)
        splitter = self._core.pre_tokenizer
        pieces = [normalised] if splitter is None else [piece for piece, _ in splitter.pre_tokenize_str(normalised)]
        if max(map(len, pieces), default=0) > vocabulary.LONGEST_PIECE:
            return None
        return [token_id for piece in pieces for token_id in tables.merge(piece)]

    def _whole(self) -> tokenizers.Tokenizer:
        """The library's tokenizer with its model."""
        if self._build is not None:
            self._core, self._build = self._build(), None
        return self._core

    def encode_prompt(self, parts: Iterable[str | Sequence[int]]) -> list[int]:
        """Token ids of a prompt that alternates between text (`str`, encoded as by `encode`) and ready ids.

        Neighbouring texts are joined before they are encoded, since a boundary would change their tokens.

        Raises:
            UsageError: a text holds a lone surrogate, or a ready id is none of this tokenizer's.
        """
        ids: list[int] = []
        pending = ""
        for part in parts:
            if isinstance(part, str):
                pending += part
                continue
            ids += self.encode(pending) if pending else []
            pending = ""
            for token_id in part:
                self._check(token_id)
                ids.append(int(token_id))
        return ids + (self.encode(pending) if pending else [])

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for, UTF-8 in whole or in part; b"" for an id in a gap of the vocabulary.

        Raises:
            UsageError: the id is below 0 or not below `vocab_size`.
        """
        known = self._bytes.get(token_id)
        if known is None:
            self._check(token_id)
            found = self._core.id_to_token(token_id) if self._tables is None else self._tables.token(token_id)
            token = found or ""
            known = self._bytes[token_id] = b"".join(BYTE_OF.get(character, character.encode()) for character in token)
        return known

    def all_bytes(self) -> list[bytes]:
        """`token_bytes` of every id, in order."""
        if self._tables is None:
            return [self.token_bytes(token_id) for token_id in range(self.vocab_size)]
        joined, places = self._tables.every_token()
        if not set(joined) <= BYTE_OF.keys():
            return [self.token_bytes(token_id) for token_id in range(self.vocab_size)]
        # The alphabet has a character for each byte, so one pass over all of them will do.
        data = joined.translate(_LATIN).encode("latin-1")
        ends = places.tolist()
        found = [data[start:stop] for start, stop in pairwise(ends)]
        found += [b""] * (self.vocab_size - len(found))
        for content, token_id in self.special_ids.items():
            found[token_id] = content.encode()
        return found

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of `token_ids`. Bytes that are no UTF-8 become U+FFFD; added tokens are shown as they are written.

        Raises:
            UsageError: an id is none of this tokenizer's.
        """
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def _check(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise UsageError(f"token id {token_id} is outside this model's vocabulary of {self.vocab_size:,} tokens")


def _signs(content: str) -> str:
    """The characters of an added token that are no letters or digits, or all where it has no others."""
    return re.sub(r"\w", "", content) or content


def _byte_alphabet() -> dict[str, bytes]:
    """Character to byte of the byte-level alphabet (GPT-2): printable Latin-1 stands for itself, the rest is moved."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(0x100) if byte not in set(printable)]
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    return alphabet | {chr(0x100 + index): bytes([byte]) for index, byte in enumerate(moved)}


BYTE_OF = _byte_alphabet()
_LATIN = {ord(character): byte[0] for character, byte in BYTE_OF.items()}


def _read(path: Path, cache: Path | None) -> Tokenizer:
    """A tokenizer from its file: by the tables in ``cache`` if they are there, else built, and the tables kept."""
    data = path.read_bytes()
    if cache is None:
        return _build(json.loads(data))
    kept = cache / f"tokenizer-{hashlib.sha256(data).hexdigest()[:32]}"
    tables = vocabulary.read(kept)
    if tables is None:
        return _build(json.loads(data), kept)
    facts = tables.facts
    return Tokenizer(
        _pipeline(facts["pipeline"]),
        facts["vocab_size"],
        facts["special_ids"],
        tables,
        lambda: _build(json.loads(data))._core,
    )


def _build(values: Any, tables: Path | None = None) -> Tokenizer:
    """A tokenizer from the parsed file. The model is built apart from the rest, which spares a second parse of it.

    `tables`: a file for its tables.

    Raises:
        ModelError: another kind of tokenizer. Whatever else is wrong raises what it happens to raise.
    """
    from tokenizers.models import BPE

    model = values["model"]
    if model.get("type", "BPE") != "BPE" or (values.get("decoder") or {}).get("type") != "ByteLevel":
        raise ModelError(f"{FILE_NAME} describes no byte-level BPE tokenizer: only those of Qwen2 models are supported")
    for option in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            raise ModelError(f"{FILE_NAME} sets {option}, which Qwen2 tokenizers do not: it is not supported")
    vocab: dict[str, int] = model["vocab"]
    merges: list[Any] = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]
    ]
    special_ids = _added_tokens(values.get("added_tokens") or [])
    vocab_size = max(vocab.values()) + 1
    if min(vocab.values()) < 0 or vocab_size > ID_LIMIT or len(set(vocab.values())) != len(vocab):
        raise ModelError(f"{FILE_NAME} holds repeated or impossible token ids: restore it from the model's source")
    core = _pipeline(values)
    core.model = BPE(vocab=vocab, merges=merges, ignore_merges=bool(model.get("ignore_merges")))
    tokenizer = Tokenizer(core, vocab_size, special_ids)
    if not vocab.keys() >= BYTE_OF.keys() or tokenizer.decode(tokenizer.encode(PROBE)) != PROBE:
        raise ModelError(f"{FILE_NAME} loses or changes text: restore it from the model's source")
    if tables is not None and not model.get("ignore_merges"):
        facts = {
            "vocab_size": vocab_size,
            "special_ids": special_ids,
            "characters": {character: vocab[character] for character in BYTE_OF},
            "pipeline": {name: values.get(name) for name in ("version", "normalizer", "pre_tokenizer", "decoder")},
        }
        vocabulary.write(tables, facts, vocab, merges)
    return tokenizer


def _pipeline(values: dict[str, Any]) -> tokenizers.Tokenizer:
    """The library's tokenizer without a vocabulary: it normalises, splits and nothing else."""
    import tokenizers

    pipeline = {
        **values,
        "added_tokens": [],
        "truncation": None,
        "padding": None,
        "post_processor": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    return tokenizers.Tokenizer.from_str(json.dumps(pipeline))


def _added_tokens(listed: list[dict[str, Any]]) -> dict[str, int]:
    special_ids: dict[str, int] = {}
    for token in listed:
        content, token_id = token["content"], token["id"]
        if not isinstance(content, str) or not content or not isinstance(token_id, int):
            raise ModelError(f"{FILE_NAME} holds an added token without text or id")
        if not 0 <= token_id < ID_LIMIT:
            raise ModelError(f"{FILE_NAME}: the added token {content} has the impossible id {token_id}")
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            raise ModelError(f"{FILE_NAME}: the added token {content} strips its surroundings, which is not supported")
        special_ids[content] = token_id
    return special_ids
