"""Token masks from constraints."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quant.wording import Argument, ArgumentMessage
from qwchat.constraints import llguidance_adapter
from qwchat.constraints.answer_mask import AnswerMask, ReplyMask
from qwchat.errors import ConstraintError, ModelError, UsageError
from qwchat.reasoning import CLOSING_TAG, OPENING_TAG, ReasoningStart
from qwchat.request import ReplyConstraint
from qwchat.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_LOOKAHEAD_TOKENS = 64  # remaining tokens, beyond twice the completion's, from where the completion is tracked
_MAX_COMPLETION_TOKENS = 1000  # tokens


class MaskFactory:
    """Factory of masks for one tokenizer. Its llguidance form is prepared once, on first use.

    Args:
        tokenizer: tokenizer of the model.
        stop_ids: tokens that end a reply. They are allowed whenever the text is complete.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = sorted(token_id for token_id in stop_ids if token_id < tokenizer.vocab_size)
        self._prepared: dict[bool, LLTokenizer] = {}
        self._closer: JsonCloser | None = None

    def mask(
        self, constraint: ReplyConstraint, prefix: Sequence[int] = (), reasoning: ReasoningStart = "none"
    ) -> ReplyMask:
        """Return the mask of a reply that begins with the tokens `prefix`; the constraint begins after a thought.

        Raises:
            UsageError: `prefix` does not fit the constraint, or the end of a thought cannot be recognised.
            ConstraintError: the grammar is too complex.
            ModelError: the model does not have a token that ends a reply.
        """
        matcher = llguidance_adapter.make_matcher(self._vocabulary(constraint.kind), constraint.grammar)
        grammar_mask = GrammarMask(matcher, self._closer if constraint.kind == "json-schema" else None)
        mentioned = Argument(constraint.kind.replace("-", "_"))
        mask = self._after_thought(grammar_mask, reasoning, mentioned)
        for token in prefix:
            if not mask.accept_prefix(token):
                raise UsageError(
                    ArgumentMessage(
                        "the reply so far does not fit ", mentioned, ": start a new reply, or remove the constraint"
                    )
                )
        return mask

    def _after_thought(self, mask: GrammarMask, reasoning: ReasoningStart, mentioned: Argument) -> ReplyMask:
        """Return the mask of a reply that may begin with a thought."""
        opening, closing = (self._tokenizer.special_ids.get(tag) for tag in (OPENING_TAG, CLOSING_TAG))
        if opening is not None and closing is not None and reasoning != "none":
            return AnswerMask(mask, opening, closing, self._stop_ids, reasoning)
        if reasoning == "open":
            why = " cannot be used with this model: its think tags are not tokens, so a thought has no certain end"
            raise UsageError(ArgumentMessage(mentioned, why))
        return mask

    def _vocabulary(self, kind: str) -> LLTokenizer:
        free_text = kind != "choices"
        if free_text not in self._prepared:
            if not self._stop_ids:
                raise ModelError(
                    "the model does not define a token that ends a reply, which constraints require: "
                    "set eos_token_id in its generation_config.json"
                )
            tokenizer = self._tokenizer
            tokens = tokenizer.all_bytes()
            token_of_byte = {text: number for number, text in enumerate(tokens) if len(text) == 1}
            self._closer = JsonCloser(tokens, token_of_byte)
            # Unused ids do not have text. As special tokens they are never allowed.
            special = {*tokenizer.special_ids.values(), *(number for number, text in enumerate(tokens) if not text)}
            vocabulary = llguidance_adapter.TokenizerVocabulary(
                tokens, sorted(special), self._stop_ids, _ForcedTextEncoder(tokenizer, tokens, token_of_byte).encode
            )
            self._prepared[free_text] = llguidance_adapter.make_tokenizer(vocabulary, slices=free_text)
        return self._prepared[free_text]


class _ForcedTextEncoder:
    """Encoder of text that a grammar forces: with the tokenizer, or byte by byte if the tokenizer changes the text."""

    def __init__(self, tokenizer: Tokenizer, tokens: Sequence[bytes], token_of_byte: Mapping[bytes, int]) -> None:
        self._tokenizer, self._tokens, self._token_of_byte = tokenizer, tokens, token_of_byte

    def encode(self, text: bytes) -> list[int]:
        ids = self._tokenizer.encode(text.decode())
        if b"".join(self._tokens[token_id] for token_id in ids) == text:
            return ids
        return [self._token_of_byte[text[at : at + 1]] for at in range(len(text))]  # the text is not in NFC


class JsonCloser:
    """Search for tokens that complete unfinished JSON.

    The candidates are single bytes, different ones within and outside strings. Bytes that end a string, object or list
    come first; then the byte that was used least, since a pattern or format may require any byte.

    String states: "" outside strings, "string", and "escape" after a backslash.
    """

    _WITHIN = b'"', b"a0@.-:/_ A1" + bytes(range(0x21, 0x7F))
    _OUTSIDE = b"}]", b'"0,:123456789.-tfn'

    def __init__(self, tokens: Sequence[bytes], token_of_byte: Mapping[bytes, int]) -> None:
        self._tokens = tokens
        self._candidates = {
            inside: tuple([token_of_byte[bytes([byte])] for byte in alphabet] for alphabet in kinds)
            for inside, kinds in ((True, self._WITHIN), (False, self._OUTSIDE))
        }

    def next_token(self, matcher: LLMatcher, string_state: str, times_used: Counter[int]) -> list[int]:
        """Return a token that may come next, as a list of one, or [] if no candidate is allowed.

        Args:
            matcher: state of the grammar.
            string_state: current string state.
            times_used: how often each token was used in this completion; updated.
        """
        ends, others = self._candidates[bool(string_state)]
        # A random order with a fixed seed, since a fixed order may never produce what a pattern requires.
        generator = random.Random(times_used.total())
        ordered = (
            *ends,
            *sorted(others, key=lambda token: (times_used[token], times_used[token] and generator.random())),
        )
        candidate = next((token for token in ordered if matcher.validate_tokens([token])), None)
        if candidate is None:
            return []
        times_used[candidate] += 1
        return [candidate]

    def state_after(self, string_state: str, token: int) -> str:
        """Return the string state after `token`."""
        text = self._tokens[token]
        if b'"' not in text and b"\\" not in text:
            return "string" if string_state else ""
        for byte in text:
            if string_state == "escape":
                string_state = "string"
            elif byte == ord('"'):
                string_state = "" if string_state else "string"
            elif string_state and byte == ord("\\"):
                string_state = "escape"
        return string_state


class GrammarMask:
    """Mask of the tokens that may come next in a reply; implements `qwchat.generation.token_mask.TokenMask`.

    Args:
        matcher: grammar at the start of the reply.
        closer: completes the reply when few tokens remain. None: never.

    Attributes:
        completing: whether the reply is being completed because few tokens remain.
    """

    def __init__(self, matcher: LLMatcher, closer: JsonCloser | None = None) -> None:
        self._matcher, self._closer = matcher, closer
        self._string_state = ""
        self._completion: list[int] | None = None  # tokens that complete the current reply; None if unknown
        self._longest_completion = 0  # tokens of the longest completion so far
        self.completing = False
        self._check()

    def allowed(self) -> NDArray[np.uint8]:
        """Return a bit mask, (ceil(ids / 8),) u8: the lowest id is the lowest bit of the first byte."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return bits

    def accept(self, token: int, remaining: int | None = None) -> int | None:
        """Append `token`, or another token if the reply could not be completed within `remaining` after it.

        Args:
            token: sampled token.
            remaining: tokens that still fit, including this one. None: no limit.

        Returns:
            The appended token, or None if the reply is complete and must end here.

        Raises:
            ConstraintError: the constraint does not allow `token`.
        """
        if (
            self._closer is not None
            and remaining is not None
            and remaining <= 2 * self._longest_completion + _LOOKAHEAD_TOKENS
        ):
            completion = self._find_completion(self._closer, []) if self._completion is None else self._completion
            self._completion = self._find_completion(self._closer, [token])
            if (
                completion is not None
                and len(completion) <= remaining
                and (self._completion is None or len(self._completion) >= remaining)
            ):
                self.completing = True
                if not completion:
                    return None
                token, self._completion = completion[0], completion[1:]
        else:
            self._completion = None
        self._consume(token)
        return token

    def accept_prefix(self, token: int) -> bool:
        """Append a token of the given prefix. Return False if the constraint does not allow it."""
        if self._matcher.try_consume_tokens([token]) != 1:
            return False
        if self._closer is not None:
            self._string_state = self._closer.state_after(self._string_state, token)
        return True

    def forced_tokens(self) -> list[int]:
        """Return the tokens that must come next, up to the first choice."""
        return self._matcher.compute_ff_tokens()

    def count_allowed(self, tokens: Sequence[int]) -> int:
        """Return how many of `tokens` may follow, one after the other."""
        return self._matcher.validate_tokens(list(tokens))

    @property
    def finished(self) -> bool:
        """Whether the reply is complete and nothing can follow."""
        return self._matcher.is_stopped()

    def _consume(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            self._check()
        if self._closer is not None:
            self._string_state = self._closer.state_after(self._string_state, token)

    def _find_completion(self, closer: JsonCloser, prefix: list[int]) -> list[int] | None:
        """Return a short sequence of tokens that completes the JSON after `prefix`, or None."""
        matcher, string_state = self._matcher.deep_copy(), self._string_state
        completion: list[int] = []
        times_used: Counter[int] = Counter()
        following = prefix
        while True:
            if not matcher.consume_tokens(following):
                return None
            for token in following:
                string_state = closer.state_after(string_state, token)
            if matcher.is_accepting():
                self._longest_completion = max(self._longest_completion, len(completion))
                return completion
            following = matcher.compute_ff_tokens()
            if not following:
                following = closer.next_token(matcher, string_state, times_used)
            if not following:
                bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
                following = np.flatnonzero(np.unpackbits(bits, bitorder="little"))[:1].tolist()
            completion += following
            if not following or len(completion) > _MAX_COMPLETION_TOKENS:
                return None

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = " ".join(self._matcher.get_error().replace("<non-verbose/>", "").split())[:200]
            raise ConstraintError(f"the constraint cannot be enforced any further ({reason}): simplify it")
