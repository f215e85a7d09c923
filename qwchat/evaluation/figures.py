"""Figures of an evaluation with 95 % confidence intervals from a bootstrap over independent pieces of text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwchat.evaluation.comparison import Floats, Scores

RESAMPLES = 2000
LEAST_BLOCKS = 8
"""With fewer documents, their windows are resampled instead."""
_BATCH = 100
_QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % confidence interval; the interval is None if there are too few independent pieces."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Divergence:
    """Distance of a model's predictions from those of a reference.

    Attributes:
        mean: mean KL divergence in nats.
        median: its median.
        percentile_99: 99 % of the tokens are below.
        percentile_99_9: 99.9 % of the tokens are below.
        largest: its maximum.
        same_top: share of tokens for which both models have the same most likely token.
        reference_perplexity: perplexity of the reference.
        perplexity_ratio: perplexity of the model over that of the reference, from paired samples.
    """

    mean: Estimate
    median: float
    percentile_99: float
    percentile_99_9: float
    largest: float
    same_top: Estimate
    reference_perplexity: float
    perplexity_ratio: Estimate


@dataclass(frozen=True)
class Figures:
    """Result of an evaluation.

    Attributes:
        tokens: predicted tokens.
        documents: documents that they come from.
        blocks: pieces that were resampled.
        loss: mean negative log-likelihood in nats.
        perplexity: exp(loss).
        divergence: distance from the reference; None without one.
    """

    tokens: int
    documents: int
    blocks: int
    loss: float
    perplexity: Estimate
    divergence: Divergence | None


def figures(scores: Scores, documents: NDArray[np.int64], windows: NDArray[np.int64]) -> Figures:
    """Return the figures of some scores.

    Args:
        scores: of all tokens.
        documents: number of each token's document, (tokens,) i64.
        windows: number of each token's window, (tokens,) i64.
    """
    count = len(np.unique(documents))
    blocks = documents if count >= LEAST_BLOCKS else windows
    bootstrap = _Bootstrap(blocks)
    loss = float(scores.nll.mean())
    divergence = _divergence(scores, bootstrap) if len(scores.reference_nll) else None
    return Figures(len(scores.nll), count, bootstrap.blocks, loss, _exponential(bootstrap, scores.nll), divergence)


def _divergence(scores: Scores, bootstrap: _Bootstrap) -> Divergence:
    found = scores.divergence
    median, high, higher = (float(value) for value in np.quantile(found, (0.5, 0.99, 0.999)))
    return Divergence(
        bootstrap.mean(found),
        median,
        high,
        higher,
        float(found.max()),
        bootstrap.mean(scores.same_top.astype(np.float64)),
        math.exp(scores.reference_nll.mean()),
        _exponential(bootstrap, scores.nll - scores.reference_nll),
    )


def _exponential(bootstrap: _Bootstrap, values: Floats) -> Estimate:
    mean = bootstrap.mean(values)
    interval = None if mean.interval is None else (math.exp(mean.interval[0]), math.exp(mean.interval[1]))
    return Estimate(math.exp(mean.value), interval)


class _Bootstrap:
    """Means with intervals from resampled blocks of tokens.

    Blocks are drawn with replacement, as often as there are blocks; the mean of a sample is its sum over its tokens.
    The seed is fixed, so that a result can be repeated, and all figures use the same samples.

    Args:
        labels: number of each token's block, (tokens,) i64.
    """

    def __init__(self, labels: NDArray[np.int64]) -> None:
        _, self._members = np.unique(labels, return_inverse=True)
        self._sizes = np.bincount(self._members).astype(np.float64)
        self.blocks = len(self._sizes)

    def mean(self, values: Floats) -> Estimate:
        """Return the mean of values, one per token, with its interval."""
        mean = float(values.mean())
        if self.blocks < LEAST_BLOCKS:
            return Estimate(mean, None)
        sums = np.bincount(self._members, values)
        generator = np.random.default_rng(0)
        means: list[Floats] = []
        for _ in range(RESAMPLES // _BATCH):
            drawn = generator.integers(self.blocks, size=(_BATCH, self.blocks))
            means.append(sums[drawn].sum(axis=1) / self._sizes[drawn].sum(axis=1))
        low, high = (float(value) for value in np.quantile(np.concatenate(means), _QUANTILES))
        return Estimate(mean, (low, high))
