"""Log-likelihoods of continuations of a context, as lm-evaluation-harness defines them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qwchat.errors import NonFiniteLogitsError, PromptTooLongError
from qwchat.evaluation.comparison import score
from qwchat.generation.cached_context import common_prefix
from qwchat.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from qwchat.api import Model

_LOGITS_BYTES = 64 << 20
_PASS_TOKENS = 512  # A fixed size, so that logits do not depend on what was evaluated before.


@dataclass(frozen=True)
class Context:
    """A prompt that continuations are appended to: token ids up to its last control token, and the text after it.

    The text is encoded together with each continuation, since a boundary would change the tokens.
    """

    head: tuple[int, ...]
    tail: str


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of a continuation.

    Attributes:
        total: sum of the log-probabilities of its tokens, in nats.
        greedy: whether each of its tokens is the most likely one.
    """

    total: float
    greedy: bool


def split_prompt(tokenizer: Tokenizer, ids: Sequence[int]) -> Context:
    """Return the token ids of a prompt as a context."""
    control = set(tokenizer.special_ids.values())
    after = next((place + 1 for place in reversed(range(len(ids))) if ids[place] in control), 0)
    return Context(tuple(ids[:after]), tokenizer.decode(ids[after:]))


def encode_pairs(
    tokenizer: Tokenizer, context: Context, continuations: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """Return the token ids of a context and of each of its continuations.

    As in lm-evaluation-harness (`TemplateLM._encode_pair`), white space at the end of the context belongs to the
    continuation, both are encoded as one text, and the tokens are split where those of the context alone end.
    """
    head = list(context.head)
    before = head + tokenizer.encode(context.tail.rstrip())
    whole = (head + tokenizer.encode(context.tail + continuation) for continuation in continuations)
    return before, [ids[len(before) :] for ids in whole]


class LikelihoodScorer:
    """Scores continuations of contexts that begin with the same tokens, which are evaluated once.

    A score depends on the shared tokens, the context and the continuation only, to the last bit: not on the contexts
    that were scored before.

    Args:
        model: the model, whose own KV cache is used.
        shared: tokens at the beginning of the contexts; a context may differ from them.
    """

    def __init__(self, model: Model, shared: Sequence[int] = ()) -> None:
        self._model = model
        self._shared = np.array(shared, np.int64)
        self._kept = 0  # shared tokens in the KV cache

    def score(self, context: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[Likelihood]:
        """Return the log-likelihood of each continuation.

        Args:
            context: token ids, at least one.
            continuations: token ids of each, at least one.

        Raises:
            PromptTooLongError: context and continuation do not fit in the context window.
            NonFiniteLogitsError: the model computed NaN or infinity.
            DamagedModelError: the model's files are known to be damaged.
        """
        longest = len(context) + max(map(len, continuations)) - 1
        if longest > self._model.context:
            raise PromptTooLongError(longest, self._model.context, self._model.longest_context)
        first = self._after(np.array(context, np.int64))
        return [self._continue(first, len(context), np.array(each, np.int64)) for each in continuations]

    def _after(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Evaluate a context; return the logits after its last token, (1, vocab) f32."""
        self._model.integrity.raise_if_damaged()
        cached = self._model.cached_context
        shared = min(common_prefix(self._shared, ids), len(ids) - 1)
        if self._kept < shared:
            cached.truncate(0)
            self._kept = 0
            self._evaluate(self._shared)
        cached.truncate(shared)
        self._kept = shared
        return self._evaluate(ids[shared:])

    def _evaluate(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Evaluate tokens after the cached ones; return the logits after the last one, (1, vocab) f32."""
        cached = self._model.cached_context
        size = min(_PASS_TOKENS, cached.decoder.chunk)
        for start in range(0, len(ids), size):
            piece = ids[start : start + size]
            last = start + size >= len(ids)
            rows = cached.evaluate(piece, len(piece) - 1 if last else len(piece), cancelled=lambda: False)
        return self._usable(rows[0].values()[None].copy())

    def _continue(self, first: NDArray[np.float32], length: int, ids: NDArray[np.int64]) -> Likelihood:
        """Score a continuation of a context of `length` tokens. `first` (1, vocab) f32: logits after the context."""
        self._model.cached_context.truncate(length)
        total, greedy = 0.0, True
        for logits, targets in self._predictions(first, ids):
            total -= float(score(logits, targets).nll.sum())
            greedy = greedy and bool((logits.argmax(axis=1) == targets).all())
        return Likelihood(total, greedy)

    def _predictions(
        self, first: NDArray[np.float32], ids: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Yield logits (n, vocab) f32 that predict the next n tokens of a continuation, and these tokens."""
        yield first, ids[:1]
        rows = max(1, _LOGITS_BYTES // (4 * self._model.config.vocab_size))
        for start in range(0, len(ids) - 1, rows):
            stop = min(start + rows, len(ids) - 1)
            logits = self._model.cached_context.extend(ids[start:stop].tolist(), _PASS_TOKENS)
            yield self._usable(logits), ids[start + 1 : stop + 1]

    def _usable(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of tokens that exist. Raises NonFiniteLogitsError."""
        usable = logits[:, : self._model.tokenizer.vocab_size]
        if not np.isfinite(usable).all():
            raise NonFiniteLogitsError("the model computed NaN or infinity: convert it again, or check its weights")
        return usable
