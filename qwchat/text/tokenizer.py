"""Byte-level BPE from `tokenizer.json`: text to token ids and back.

The merging itself is done by the `tokenizers` library. Three things are kept out of its hands:

- The file's pipeline. `qwchat.text.tokenizer_file` checks it, and the library gets one built from constants here.
- Added tokens (`<|im_end|>` and its like). The library finds them in any text it is given, so that a person who types
  `<|im_end|>` would end the turn. Here the library never learns of them: `encode` turns text into text tokens only, and
  control tokens enter a prompt through `encode_prompt`, as ids.
- Decoding. A token is a string of bytes (`token_bytes`), which need not be whole characters. Joining the bytes first is
  what makes streaming equal to one-shot decoding (see `qwchat.text.detokenizer`).

Decoding gives back the encoded text exactly, up to the Unicode normal form (NFC) that the Qwen2 tokenizer applies.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from quant.safe_files import read_bounded
from qwchat.errors import ModelError, UsageError
from qwchat.text import tokenizer_cache, tokenizer_file
from qwchat.text.tokenizer_file import RESTORE, SIZE_LIMIT

if TYPE_CHECKING:
    import tokenizers

FILE_NAME = "tokenizer.json"
PROBE = "A  b1é漢👍\t\x00\n\n"  # what a sound tokenizer gives back: capitals, blanks, characters of 1 to 4 bytes
Result = TypeVar("Result")


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
        library: tokenizers.Tokenizer,
        vocab_size: int,
        special_ids: dict[str, int],
        tables: tokenizer_cache.TokenizerTables | None = None,
        build_full: Callable[[], tokenizers.Tokenizer] | None = None,
    ) -> None:
        self.vocab_size = max(vocab_size, *(token_id + 1 for token_id in special_ids.values()), 0)
        self.special_ids = special_ids
        self.control_pattern = re.compile(_alternation(sorted(special_ids)) if special_ids else r"(?!)")
        self.control_characters = frozenset("".join(map(_marker_characters, special_ids)))
        # With tables, the library's part normalises and splits; `build` makes a whole one of it, should it be needed.
        self._library, self._tables, self._build_full = library, tables, build_full
        self._known_bytes = {token_id: content.encode() for content, token_id in special_ids.items()}

    @classmethod
    def from_folder(
        cls, folder: str | Path, cache: Path | None = None, model_vocab_size: int | None = None
    ) -> Tokenizer:
        """Read `tokenizer.json` of a model folder or checkpoint.

        Args:
            folder: where the file is.
            cache: a folder of the user's own, for tables that make the next start quicker.
            model_vocab_size: rows of the model's logits, which every token id must be below; None if not known.

        Raises:
            ModelError: the file is missing, broken, describes another kind of tokenizer, or belongs to another model.
        """
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise ModelError(f"{folder} has no {FILE_NAME}: copy it there from the model's source")
        tokenizer = _load(path, cache)
        if model_vocab_size is not None and tokenizer.vocab_size > model_vocab_size:
            raise ModelError(
                f"{path} has the token id {tokenizer.vocab_size - 1:,}, and config.json has a vocab_size of "
                f"{model_vocab_size:,}: restore both from the same model"
            )
        return tokenizer

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
        ids = None if self._tables is None else self._encode_with(self._tables, text)
        return _call(lambda: self._full_library().encode(text, add_special_tokens=False).ids) if ids is None else ids

    def _encode_with(self, tables: tokenizer_cache.TokenizerTables, text: str) -> list[int] | None:
        """What the library would give; None where it is quicker."""
        if self._build_full is None or len(text) > tables.longest_text:
            return None
        pieces = _call(lambda: self._split(text))
        if max(map(len, pieces), default=0) > tokenizer_cache.LONGEST_PIECE:
            return None
        return [token_id for piece in pieces for token_id in tables.merge(piece)]

    def _split(self, text: str) -> list[str]:
        """Return the pieces of a text within which tokens are merged, in the byte-level alphabet."""
        normaliser, splitter = self._library.normalizer, self._library.pre_tokenizer
        normalised = text if normaliser is None else normaliser.normalize_str(text)
        return [piece for piece, _ in splitter.pre_tokenize_str(normalised)]

    def _full_library(self) -> tokenizers.Tokenizer:
        """The library's tokenizer with its model."""
        if self._build_full is not None:
            self._library, self._build_full = self._build_full(), None
        return self._library

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
        known = self._known_bytes.get(token_id)
        if known is None:
            self._check(token_id)
            tables = self._tables
            found = _call(lambda: self._library.id_to_token(token_id)) if tables is None else tables.token(token_id)
            token = found or ""
            known = self._known_bytes[token_id] = b"".join(
                BYTE_OF.get(character, character.encode()) for character in token
            )
        return known

    def all_bytes(self) -> list[bytes]:
        """`token_bytes` of every id, in order."""
        if self._tables is None:
            return [self.token_bytes(token_id) for token_id in range(self.vocab_size)]
        joined, places = self._tables.all_tokens()
        if not set(joined) <= BYTE_OF.keys():
            return [self.token_bytes(token_id) for token_id in range(self.vocab_size)]
        # The alphabet has a character for each byte, so one pass over all of them will do.
        data = joined.translate(_TO_LATIN_1).encode("latin-1")
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


def _marker_characters(content: str) -> str:
    """The characters of an added token that are no letters or digits, or all where it has no others."""
    return re.sub(r"\w", "", content) or content


def _byte_alphabet() -> dict[str, bytes]:
    """Character to byte of the byte-level alphabet (GPT-2): printable Latin-1 stands for itself, the rest is moved."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(0x100) if byte not in set(printable)]
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    return alphabet | {chr(0x100 + index): bytes([byte]) for index, byte in enumerate(moved)}


BYTE_OF = _byte_alphabet()
_TO_LATIN_1 = {ord(character): byte[0] for character, byte in BYTE_OF.items()}


def _alternation(texts: Sequence[str]) -> str:
    """Return a pattern that matches the longest of `texts` (sorted, distinct) that stands at a place.

    It shares what texts begin with, so that a place costs the length of one text, however many there are.
    """
    first, last = texts[0], texts[-1]
    length = next((place for place in range(len(first)) if first[place] != last[place : place + 1]), len(first))
    prefix = first[:length]
    rests = [rest for text in texts if (rest := text[length:])]
    if not rests:
        return re.escape(prefix)
    branches = "|".join(_alternation(list(group)) for _, group in groupby(rests, key=lambda rest: rest[0]))
    return f"{re.escape(prefix)}(?:{branches}){'?' if len(rests) < len(texts) else ''}"


def _call(function: Callable[[], Result]) -> Result:
    """Call the library, and turn whatever it raises into one error.

    Raises:
        ModelError: the library fails. A panic of its Rust code is not even an Exception to Python.
    """
    try:
        return function()
    except ModelError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(f"the tokenizer library fails ({reason}): restore {FILE_NAME} from its source") from error


def _load(path: Path, cache: Path | None) -> Tokenizer:
    """Make a tokenizer from the tables that `cache` holds of its file, or build it and keep its tables there."""
    data = read_bounded(path, ModelError, SIZE_LIMIT)
    cached = None if cache is None else cache / f"tokenizer-{hashlib.sha256(data).hexdigest()[:32]}"
    tables = None if cached is None else tokenizer_cache.read_tables(cached)
    if tables is None:
        return _build(tokenizer_file.parse(data, path), path, cached)
    metadata = tables.metadata
    return Tokenizer(
        _build_pipeline(metadata["composes"], metadata["pattern"]),
        metadata["vocab_size"],
        metadata["special_ids"],
        tables,
        lambda: _build_library_tokenizer(tokenizer_file.parse(data, path)),
    )


def _build(definition: tokenizer_file.TokenizerDefinition, path: Path, tables: Path | None) -> Tokenizer:
    """Build a tokenizer from what its file defines; `tables` is where to keep its tables.

    Raises:
        ModelError: it does not give every text back.
    """
    vocab = definition.vocab
    tokenizer = Tokenizer(_build_library_tokenizer(definition), max(vocab.values()) + 1, definition.special_ids)
    if not vocab.keys() >= BYTE_OF.keys() or tokenizer.decode(tokenizer.encode(PROBE)) != PROBE:
        raise ModelError(f"{path} loses or changes text: {RESTORE}")
    if tables is not None and not definition.ignore_merges:
        metadata = {
            "vocab_size": tokenizer.vocab_size,
            "special_ids": definition.special_ids,
            "characters": {character: vocab[character] for character in BYTE_OF},
            "composes": definition.normalises_nfc,
            "pattern": definition.pattern,
        }
        tokenizer_cache.write_tables(tables, metadata, vocab, definition.merges)
    return tokenizer


def _build_library_tokenizer(definition: tokenizer_file.TokenizerDefinition) -> tokenizers.Tokenizer:
    """Build the library's tokenizer."""
    from tokenizers.models import BPE

    def build_full() -> tokenizers.Tokenizer:
        library = _build_pipeline(definition.normalises_nfc, definition.pattern)
        library.model = BPE(vocab=definition.vocab, merges=definition.merges, ignore_merges=definition.ignore_merges)
        return library

    return _call(build_full)


def _build_pipeline(normalises_nfc: bool, pattern: str) -> tokenizers.Tokenizer:
    """Build the library's tokenizer without a vocabulary, which only normalises and splits."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    library = Tokenizer(models.BPE())
    if normalises_nfc:
        library.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(pattern), "isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return library
