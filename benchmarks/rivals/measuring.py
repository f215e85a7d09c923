"""Divergence of models from the bf16 checkpoint, on the same tokens of several kinds of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwchat.api import Model
from qwchat.evaluation.comparison import join, score
from qwchat.evaluation.documents import parse_conversations, reply_documents
from qwchat.evaluation.figures import Divergence, figures

Logits = NDArray[np.float32]
Evaluate = Callable[[Sequence[int]], Logits]
CONVERSATIONS = ".jsonl"


@dataclass(frozen=True)
class Window:
    """Token ids that are evaluated from position 0.

    Attributes:
        kind: kind of text.
        ids: token ids.
        first_scored: index of the first token whose prediction counts.
        document: number of the document, for confidence intervals.
    """

    kind: str
    ids: list[int]
    first_scored: int
    document: int


def text_windows(model: Model, kind: str, file: Path, tokens: int, size: int) -> list[Window]:
    """Return windows of `size` tokens, spread evenly over a text, that have about `tokens` tokens together.

    A file of conversations (JSON Lines) is rendered by the chat template, and the tokens of replies count.
    """
    if file.suffix == CONVERSATIONS:
        return conversation_windows(model, kind, file, tokens, size)
    ids = model.encode(file.read_text("utf-8"))
    starts = list(range(0, max(1, len(ids) - size + 1), size))
    count = min(len(starts), max(1, tokens // size))
    chosen = [starts[number * len(starts) // count] for number in range(count)]
    return [Window(kind, ids[start : start + size], 1, number) for number, start in enumerate(chosen)]


def conversation_windows(model: Model, kind: str, file: Path, tokens: int, size: int) -> list[Window]:
    """Return the replies of conversations, the first ones that have `tokens` tokens of replies together."""
    found: list[Window] = []
    for number, messages in enumerate(parse_conversations(file.read_text("utf-8"), str(file))):
        for document in reply_documents(model, messages, number):
            if len(document.ids) <= size:
                found.append(Window(kind, document.ids.tolist(), document.first_scored, number))
                tokens -= len(document.ids) - document.first_scored
        if tokens <= 0:
            break
    return found


@dataclass(frozen=True)
class Yardstick:
    """Windows, and the reference's logits of their scored tokens, each (scored, vocabulary)."""

    windows: list[Window]
    logits: list[Logits]
    vocabulary: int

    @classmethod
    def of(cls, reference: Model, windows: list[Window]) -> Yardstick:
        """Evaluate the reference on all windows."""
        usable = reference.tokenizer.vocab_size
        return cls(windows, [predicted(reference.logits, each, usable) for each in windows], usable)

    def tokens(self) -> dict[str, int]:
        """Return the number of scored tokens of each kind of text."""
        counts: dict[str, int] = {}
        for each in self.windows:
            counts[each.kind] = counts.get(each.kind, 0) + len(each.ids) - each.first_scored
        return counts

    def measure(self, evaluate: Evaluate) -> dict[str, Divergence]:
        """Return the distance of a model from the reference for each kind of text.

        Args:
            evaluate: returns the logits (tokens, vocabulary) of token ids.
        """
        return self.compare(predicted(evaluate, each, self.vocabulary) for each in self.windows)

    def compare(self, logits: Iterator[Logits]) -> dict[str, Divergence]:
        """Return the distance of some logits from the reference's; both are of the scored tokens of each window."""
        scores = []
        for window, mine, reference in zip(self.windows, logits, self.logits, strict=True):
            targets = np.array(window.ids[window.first_scored :], np.int64)
            scores.append(score(mine, targets, reference))
        return {kind: self._divergence(kind, scores) for kind in self.tokens()}

    def _divergence(self, kind: str, scores: Sequence) -> Divergence:
        chosen = [(window, found) for window, found in zip(self.windows, scores, strict=True) if window.kind == kind]
        sizes = [len(found.nll) for _, found in chosen]
        documents = np.repeat([window.document for window, _ in chosen], sizes)
        numbers = np.repeat(np.arange(len(chosen)), sizes)
        divergence = figures(join([found for _, found in chosen]), documents, numbers).divergence
        assert divergence is not None
        return divergence


def predicted(evaluate: Evaluate, window: Window, vocabulary: int) -> Logits:
    """Return the logits that predict the scored tokens of a window, (scored, vocabulary)."""
    (logits,) = scored([evaluate(window.ids[:-1])], [window], vocabulary)
    return logits


def scored(logits: Sequence[Logits], windows: Sequence[Window], vocabulary: int) -> Iterator[Logits]:
    """Yield the logits (scored, vocabulary) that predict scored tokens, from those of whole windows."""
    for all_rows, window in zip(logits, windows, strict=True):
        yield np.ascontiguousarray(all_rows[window.first_scored - 1 :, :vocabulary], np.float32)


def calibration_windows(model: Model, files: Sequence[Path], tokens: int, size: int) -> list[list[int]]:
    """Return windows of all files in equal shares, `tokens` tokens together."""
    found: list[list[int]] = []
    for file in files:
        left = tokens // len(files)
        for window in text_windows(model, file.stem, file, left, size):
            if left > 0:
                found.append(window.ids)
                left -= len(window.ids)
    return found


def as_data(found: Mapping[str, Divergence]) -> dict[str, dict[str, object]]:
    """Return the figures of each kind of text for JSON."""
    return {
        kind: {
            "kl_mean": each.mean.value,
            "kl_interval": each.mean.interval,
            "kl_median": each.median,
            "kl_99_9": each.percentile_99_9,
            "same_top": each.same_top.value,
            "perplexity_ratio": each.perplexity_ratio.value,
            "reference_perplexity": each.reference_perplexity,
        }
        for kind, each in found.items()
    }
