"""llguidance, as far as qwchat uses it: grammars in, matchers out.  Imported on first use; it prints nothing."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

SECONDS = 5  # that checking a grammar may take
TOO_COMPLEX = f"it is too complex to be checked within {SECONDS} s"
# JSON on one line, with or without a blank behind commas and colons: models that may write any white space can write it
# for ever, and what reads the reply does not mind.
_WHITE_SPACE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
# Nothing in a schema may weaken this: an unsupported keyword is an error, and oneOf is never read as anyOf.
_SCHEMA_OPTIONS = {**_WHITE_SPACE, "lenient": False, "coerce_one_of": False}


def regex_grammar(pattern: str) -> str:
    """A grammar of what matches `pattern` as a whole; what is wrong with it shows when it is compiled."""
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(pattern)


def schema_grammar(schema: dict[str, Any]) -> str:
    """A grammar of the JSON that fits `schema`; what is wrong with it shows when it is compiled."""
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_SCHEMA_OPTIONS)  # type: ignore[arg-type]


def make_matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """A matcher at the start of `grammar`.  It raises nothing: ask it for its error."""
    from llguidance import LLMatcher, LLParserLimits

    return LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))


@dataclass(frozen=True)
class TokenizerVocabulary:
    """What the library asks of a tokenizer; its instances are what it wraps.

    `tokens`: the bytes of every id; `special_token_ids`: ids that are no text, which no grammar allows;
    `eos_ids`: ids that may follow a complete text; `encode`: how the model spells a text that is forced.
    """

    tokens: Sequence[bytes]
    special_token_ids: Sequence[int]
    eos_ids: Sequence[int]
    encode: Callable[[bytes], list[int]]
    bos_token_id = None

    @property
    def eos_token_id(self) -> int:
        """The first of `eos_ids`."""
        return self.eos_ids[0]

    def __call__(self, text: bytes) -> list[int]:
        """The ids of `text`."""
        return self.encode(text)


def make_tokenizer(vocabulary: TokenizerVocabulary, *, slices: bool) -> LLTokenizer:
    """The library's tokenizer.  `slices`: prepare for free text: takes a while once, makes masks of strings quick."""
    from llguidance import LLTokenizer, TokenizerWrapper

    size, eos = len(vocabulary.tokens), list(vocabulary.eos_ids)
    return LLTokenizer(TokenizerWrapper(vocabulary), n_vocab=size, eos_token=eos, slices=None if slices else [])


@functools.cache
def _byte_tokenizer() -> LLTokenizer:
    """A vocabulary of the 256 bytes and an end, to check grammars and texts without a model."""
    tokens = [*(bytes([byte]) for byte in range(256)), b"end"]
    return make_tokenizer(TokenizerVocabulary(tokens, [256], [256], list), slices=False)


def grammar_error(grammar: str) -> str | None:
    """What is wrong with `grammar`; None where it is sound and some text fits it."""
    answer: list[str | None] = []
    # The library's limits count steps, and a step may take long.  It cannot be stopped, but it can be left behind.
    worker = threading.Thread(target=lambda: answer.append(_find_error(grammar)), daemon=True)
    worker.start()
    worker.join(SECONDS)
    return answer[0] if answer else TOO_COMPLEX


def _find_error(grammar: str) -> str | None:
    found = make_matcher(_byte_tokenizer(), grammar)
    if not found.is_error() and not found.is_stopped():
        found.compute_bitmask()
    if found.stop_reason() in ("NotStopped", "NoExtension"):
        return None
    failure = found.get_error().strip()
    return "nothing can fit it" if failure.partition("\n")[0] in ("", "NoExtensionBias") else failure


def fits(grammar: str, text: str) -> bool:
    """Whether `text` as a whole fits `grammar`, byte by byte."""
    found = make_matcher(_byte_tokenizer(), grammar)
    data = text.encode("utf-8", "surrogatepass")
    return found.try_consume_tokens(list(data)) == len(data) and found.is_accepting()
