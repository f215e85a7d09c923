"""Evaluate a model, and a reference beside it, on documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qwchat.errors import NonFiniteLogitsError, PromptTooLongError, UsageError
from qwchat.evaluation.comparison import Scores, join, score
from qwchat.evaluation.documents import Document
from qwchat.evaluation.figures import Figures, figures
from qwchat.evaluation.windows import Window, windows

if TYPE_CHECKING:
    from qwchat.api import Model

_LOGITS_BYTES = 64 << 20  # of one model at a time
_CONTEXT_TOKENS = 512  # tokens per pass that need no logits


def check_same_tokens(model: Model, reference: Model) -> None:
    """Raise UsageError unless two models split and number text in the same way."""
    own, other = model.tokenizer, reference.tokenizer
    sample = "".join(chr(code) for code in range(32, 0x2E80, 7)) + "The 12 quick\n\n  brown foxes' 世界 Straße"
    if own.vocab_size != other.vocab_size or own.encode(sample) != other.encode(sample):
        raise UsageError("the two models have different tokenizers, so that their predictions cannot be compared")


@dataclass
class Evaluation:
    """Scores of documents, collected window by window.

    Attributes:
        model: the model.
        reference: the model that it is compared with, or None.
        window: tokens that are evaluated together, at most the context window of both models.
    """

    model: Model
    reference: Model | None
    window: int
    _scores: list[Scores] = field(default_factory=list, init=False)
    _documents: list[NDArray[np.int64]] = field(default_factory=list, init=False)
    _windows: list[NDArray[np.int64]] = field(default_factory=list, init=False)

    def add(self, document: Document, *, whole: bool) -> Iterator[int]:
        """Evaluate a document; yield how many of its tokens are done after each window.

        Args:
            document: the document.
            whole: refuse a document that is longer than a window.

        Raises:
            PromptTooLongError: it is longer than a window, which is not allowed.
            NonFiniteLogitsError: a model computed NaN or infinity.
        """
        tokens = len(document.ids)
        if whole and tokens > self.window:
            raise PromptTooLongError(tokens, self.window, self.model.longest_context)
        for window in windows(tokens, document.first_scored, self.window):
            found = self._score(document.ids, window)
            self._scores.append(found)
            self._documents.append(np.full(len(found.nll), document.source))
            self._windows.append(np.full(len(found.nll), len(self._windows)))
            yield window.stop

    def figures(self) -> Figures:
        """Return the figures of everything added. Raises UsageError if no token was scored."""
        if not self._scores:
            raise UsageError("the text has no token to predict: give at least two tokens")
        return figures(join(self._scores), np.concatenate(self._documents), np.concatenate(self._windows))

    def _score(self, ids: NDArray[np.int64], window: Window) -> Scores:
        """Return the scores of a window's tokens from `first_scored` on."""
        models = [self.model] if self.reference is None else [self.model, self.reference]
        usable = self.model.tokenizer.vocab_size
        rows = max(1, _LOGITS_BYTES // (4 * self.model.config.vocab_size))
        first = window.first_scored - 1  # The logits after this token predict the first scored one.
        for each in models:
            _skip(each, ids[window.start : first])
        parts = []
        for start in range(first, window.stop - 1, rows):
            stop = min(start + rows, window.stop - 1)
            logits = [_logits(each, ids[start:stop])[:, :usable] for each in models]
            parts.append(score(logits[0], ids[start + 1 : stop + 1], *logits[1:]))
        return join(parts)


def _skip(model: Model, ids: NDArray[np.int64]) -> None:
    """Evaluate the context of a window from position 0, without logits. Cached tokens are not evaluated again."""
    context = model.cached_context
    context.truncate(context.count_cached(ids))
    size = min(_CONTEXT_TOKENS, context.decoder.chunk)
    for start in range(context.length, len(ids), size):
        piece = ids[start : start + size]
        context.evaluate(piece, len(piece))


def _logits(model: Model, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    model.integrity.raise_if_damaged()
    logits = model.cached_context.extend(ids.tolist())
    if not np.isfinite(logits).all():
        raise NonFiniteLogitsError("the model computed NaN or infinity: convert it again, or check its weights")
    return logits


def total_bytes(documents: Sequence[Document]) -> int:
    """Return the bytes of text of all documents, the unit of progress."""
    return sum(document.text_bytes for document in documents)
