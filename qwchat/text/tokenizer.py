"""Byte-level BPE tokenizer from `tokenizer.json`: text to token ids and back.

The `tokenizers` library merges the tokens. qwchat keeps three things away from it:

- The pipeline of the file. `quant.tokenizer_file` checks it, and the library gets one built from constants.
- Added tokens such as `<|im_end|>`. The library would find them in any text, so that a user who types `<|im_end|>`
  would end the turn. Here the library does not know them: `encode` converts text to text tokens only, and control
  tokens enter a prompt as ids (`encode_prompt`).
- Decoding. A token is a string of bytes (`token_bytes`), which may end within a character. The bytes are joined before
  they are decoded, so that streaming gives the same text (`qwchat.text.detokenizer`).

Decoding returns exactly the encoded text, except that the Qwen2 tokenizer normalises it to NFC.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from quant import tokenizer_file
from quant.safe_files import read_bounded
from quant.tokenizer_file import BYTE_OF, RESTORE, SIZE_LIMIT
from qwchat.errors import ModelError, UsageError
from qwchat.text import tokenizer_cache

if TYPE_CHECKING:
    import tokenizers

FILE_NAME = "tokenizer.json"
PROBE = (
    "A  b1é漢👍\t\x00\n\n"  # every valid tokenizer must reproduce this: capitals, spaces, characters of 1 to 4 bytes
)
Result = TypeVar("Result")


class Tokenizer:
    """Tokenizer of one model. Created by `from_folder`. Threads may share it.

    Attributes:
        vocab_size: highest token id + 1. A model may have more logits (Qwen2-7B: 152,064 and 151,646 tokens). Logits
            from `vocab_size` on do not belong to a token and must never be sampled.
        special_ids: content -> id of every added token, whether or not the file calls it special.
        control_pattern: regular expression that matches any added token in a rendered template, the longest first.
        control_characters: punctuation of all added tokens. Text without these characters does not contain any.
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
        # With tables, the library only normalises and splits. `build_full` builds it with its model if needed.
        self._library, self._tables, self._build_full = library, tables, build_full
        self._known_bytes = {token_id: content.encode() for content, token_id in special_ids.items()}

    @classmethod
    def from_folder(
        cls, folder: str | Path, cache: Path | None = None, model_vocab_size: int | None = None
    ) -> Tokenizer:
        """Read `tokenizer.json` of a model folder or checkpoint.

        Args:
            folder: folder of the file.
            cache: private folder for tables that make the next start faster. None: no cache.
            model_vocab_size: number of the model's logits, which limits the token ids. None: not checked.

        Raises:
            ModelError: the file is missing, damaged, of an unsupported type, or belongs to another model.
        """
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise ModelError(f"{folder} has no {FILE_NAME}: copy it there from the model's source")
        tokenizer = _load(path, cache)
        if model_vocab_size is not None and tokenizer.vocab_size > model_vocab_size:
            raise ModelError(
                f"{path} has the token id {tokenizer.vocab_size - 1:,}, but config.json has a vocab_size of "
                f"{model_vocab_size:,}: restore both from the same model"
            )
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`. Control tokens in it are encoded as ordinary text.

        Raises:
            UsageError: the text contains a lone surrogate, which is not a Unicode character.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the text contains the lone surrogate U+{ord(text[error.start]):04X} at position {error.start}: "
                "remove it, or decode the text with the right encoding"
            ) from error
        ids = None if self._tables is None else self._encode_with(self._tables, text)
        return _call(lambda: self._full_library().encode(text, add_special_tokens=False).ids) if ids is None else ids

    def _encode_with(self, tables: tokenizer_cache.TokenizerTables, text: str) -> list[int] | None:
        """Encode `text` with the tables. Return None if the library is faster."""
        if self._build_full is None or len(text) > tables.longest_text:
            return None
        pieces = _call(lambda: self._split(text))
        if max(map(len, pieces), default=0) > tokenizer_cache.LONGEST_PIECE:
            return None
        return [token_id for piece in pieces for token_id in tables.merge(piece)]

    def _split(self, text: str) -> list[str]:
        """Split a text into the pieces within which tokens are merged, in the byte-level alphabet."""
        normaliser, splitter = self._library.normalizer, self._library.pre_tokenizer
        normalised = text if normaliser is None else normaliser.normalize_str(text)
        return [piece for piece, _ in splitter.pre_tokenize_str(normalised)]

    def _full_library(self) -> tokenizers.Tokenizer:
        """Return the library's tokenizer with its model."""
        if self._build_full is not None:
            self._library, self._build_full = self._build_full(), None
        return self._library

    def encode_prompt(self, parts: Iterable[str | Sequence[int]]) -> list[int]:
        """Return the token ids of a prompt.

        Adjacent texts are joined before they are encoded, since a boundary would change their tokens.

        Args:
            parts: texts, encoded as by `encode`, and sequences of token ids.

        Raises:
            UsageError: a text contains a lone surrogate, or an id is not in the vocabulary.
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
        """Return the bytes of a token, whole or partial UTF-8 characters. Unused ids have b"".

        Raises:
            UsageError: the id is negative or at least `vocab_size`.
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
        """Return `token_bytes` of every id, in order."""
        if self._tables is None:
            return [self.token_bytes(token_id) for token_id in range(self.vocab_size)]
        joined, places = self._tables.all_tokens()
        if not set(joined) <= BYTE_OF.keys():
            return [self.token_bytes(token_id) for token_id in range(self.vocab_size)]
        # Each character of the alphabet is one byte, so all tokens can be converted in one pass.
        data = joined.translate(_TO_LATIN_1).encode("latin-1")
        ends = places.tolist()
        found = [data[start:stop] for start, stop in pairwise(ends)]
        found += [b""] * (self.vocab_size - len(found))
        for content, token_id in self.special_ids.items():
            found[token_id] = content.encode()
        return found

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of `token_ids`. Invalid UTF-8 becomes U+FFFD. Added tokens are written out.

        Raises:
            UsageError: an id is not in the vocabulary.
        """
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def _check(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise UsageError(f"token id {token_id} is outside this model's vocabulary of {self.vocab_size:,} tokens")


def _marker_characters(content: str) -> str:
    """Return the characters of an added token that are not letters or digits, or all if there are no others."""
    return re.sub(r"\w", "", content) or content


_TO_LATIN_1 = {ord(character): byte[0] for character, byte in BYTE_OF.items()}


def _alternation(texts: Sequence[str]) -> str:
    """Return a pattern that matches the longest of several texts at a position.

    Common prefixes are shared, so that the cost per position is the length of one text, not of all.

    Args:
        texts: sorted and distinct.
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
    """Call the library and turn its exceptions into ModelError.

    Raises:
        ModelError: the library failed. In Python, a panic of its Rust code is not an Exception.
    """
    try:
        return function()
    except ModelError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(
            f"the tokenizer library failed ({reason}): restore {FILE_NAME} from the model's source"
        ) from error


def _load(path: Path, cache: Path | None) -> Tokenizer:
    """Load a tokenizer from its cached tables, or build it and cache its tables."""
    data = read_bounded(path, ModelError, SIZE_LIMIT)
    cached = None if cache is None else cache / f"tokenizer-{hashlib.sha256(data).hexdigest()[:32]}"
    tables = None if cached is None else tokenizer_cache.read_tables(cached)
    if tables is None:
        return _build(tokenizer_file.parse(data, str(path), ModelError), path, cached)
    metadata = tables.metadata
    return Tokenizer(
        _build_pipeline(metadata["composes"], metadata["pattern"]),
        metadata["vocab_size"],
        metadata["special_ids"],
        tables,
        lambda: _build_library_tokenizer(tokenizer_file.parse(data, str(path), ModelError)),
    )


def _build(definition: tokenizer_file.TokenizerDefinition, path: Path, tables: Path | None) -> Tokenizer:
    """Build a tokenizer.

    Args:
        definition: content of its file.
        path: the file, for messages.
        tables: file for its tables. None: do not cache them.

    Raises:
        ModelError: decoding does not return the encoded text.
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
    """Build the library's tokenizer with its model."""
    from tokenizers.models import BPE

    def build_full() -> tokenizers.Tokenizer:
        library = _build_pipeline(definition.normalises_nfc, definition.pattern)
        library.model = BPE(vocab=definition.vocab, merges=definition.merges, ignore_merges=definition.ignore_merges)
        return library

    return _call(build_full)


def _build_pipeline(normalises_nfc: bool, pattern: str) -> tokenizers.Tokenizer:
    """Build the library's tokenizer without a vocabulary. It can only normalise and split."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    library = Tokenizer(models.BPE())
    if normalises_nfc:
        library.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(pattern), "isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return library
