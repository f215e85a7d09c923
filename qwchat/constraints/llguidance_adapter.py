"""Interface to llguidance: grammars in, matchers out. Imported on first use. It prints nothing."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

SECONDS = 5  # time limit of checking a grammar
TOO_COMPLEX = f"it is too complex to be checked within {SECONDS} s"
# JSON on one line, with an optional space after commas and colons. With free white space, a model may write it without
# end, and JSON readers do not need it.
_WHITE_SPACE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
# A schema must not override these: unsupported keywords are errors, and oneOf is never treated as anyOf.
_SCHEMA_OPTIONS = {**_WHITE_SPACE, "lenient": False, "coerce_one_of": False}


def regex_grammar(pattern: str) -> str:
    """Return the grammar of whole matches of `pattern`. Errors appear when it is compiled."""
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(pattern)


def schema_grammar(schema: dict[str, Any]) -> str:
    """Return the grammar of JSON that fits `schema`. Errors appear when it is compiled."""
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_SCHEMA_OPTIONS)  # type: ignore[arg-type]


def make_matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Return a matcher at the start of `grammar`. It does not raise; it has an error state."""
    from llguidance import LLMatcher, LLParserLimits

    return LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))


@dataclass(frozen=True)
class TokenizerVocabulary:
    """Vocabulary in the form that llguidance expects.

    Attributes:
        tokens: bytes of every token, by id.
        special_token_ids: ids that are not text. Grammars never allow them.
        eos_ids: ids that may follow a complete text.
        encode: returns the ids of a text that the grammar forces.
    """

    tokens: Sequence[bytes]
    special_token_ids: Sequence[int]
    eos_ids: Sequence[int]
    encode: Callable[[bytes], list[int]]
    bos_token_id = None

    @property
    def eos_token_id(self) -> int:
        """First of `eos_ids`."""
        return self.eos_ids[0]

    def __call__(self, text: bytes) -> list[int]:
        """Return the ids of `text`."""
        return self.encode(text)


def make_tokenizer(vocabulary: TokenizerVocabulary, *, slices: bool) -> LLTokenizer:
    """Return llguidance's tokenizer.

    Args:
        vocabulary: vocabulary of the model.
        slices: prepare for free text. This takes a while once and makes masks within strings fast.
    """
    from llguidance import LLTokenizer, TokenizerWrapper

    size, eos = len(vocabulary.tokens), list(vocabulary.eos_ids)
    return LLTokenizer(TokenizerWrapper(vocabulary), n_vocab=size, eos_token=eos, slices=None if slices else [])


@functools.cache
def _byte_tokenizer() -> LLTokenizer:
    """Return a tokenizer of the 256 bytes and an end token, to check grammars and texts without a model."""
    tokens = [*(bytes([byte]) for byte in range(256)), b"end"]
    return make_tokenizer(TokenizerVocabulary(tokens, [256], [256], list), slices=False)


def grammar_error(grammar: str) -> str | None:
    """Return the error of `grammar`, or None if it is valid and some text fits it."""
    answer: list[str | None] = []
    # llguidance limits the number of steps, but a step may take long. It cannot be interrupted, so abandon its thread.
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
    return "nothing can match it" if failure.partition("\n")[0] in ("", "NoExtensionBias") else failure


def fits(grammar: str, text: str) -> bool:
    """Return whether `text` as a whole fits `grammar`."""
    found = make_matcher(_byte_tokenizer(), grammar)
    data = text.encode("utf-8", "surrogatepass")
    return found.try_consume_tokens(list(data)) == len(data) and found.is_accepting()
