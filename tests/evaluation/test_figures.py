"""Figures and their confidence intervals."""

from __future__ import annotations

import math

import numpy as np

from qwchat.evaluation.comparison import Scores
from qwchat.evaluation.figures import LEAST_BLOCKS, Estimate, figures


def scores(nll: np.ndarray, reference: np.ndarray | None = None, divergence: np.ndarray | None = None) -> Scores:
    empty = np.empty(0)
    if reference is None or divergence is None:
        return Scores(nll, empty, empty, np.empty(0, np.bool_))
    return Scores(nll, reference, divergence, divergence < 0.5)


def test_few_pieces_have_no_interval() -> None:
    tokens = np.arange(30)
    found = figures(scores(np.linspace(1, 2, 30)), tokens // 15, tokens // 5)
    assert (found.tokens, found.documents, found.blocks) == (30, 2, 6)
    assert found.blocks < LEAST_BLOCKS
    assert found.perplexity.interval is None
    assert math.isclose(found.perplexity.value, math.exp(1.5))
    assert found.divergence is None


def test_windows_are_resampled_where_documents_are_few() -> None:
    tokens = np.arange(200)
    assert figures(scores(np.ones(200)), tokens // 100, tokens // 10).blocks == 20
    assert figures(scores(np.ones(200)), tokens // 10, tokens // 5).blocks == 20
    assert figures(scores(np.ones(200)), tokens // 10, tokens // 5).documents == 20


def test_an_interval_covers_the_spread_between_pieces() -> None:
    generator = np.random.default_rng(1)
    means = generator.normal(2.0, 0.3, size=64)
    documents = np.repeat(np.arange(64), 25)
    found = figures(scores(means[documents]), documents, documents)
    assert found.perplexity.interval is not None
    low, high = (math.log(bound) for bound in found.perplexity.interval)
    assert math.isclose(found.loss, means.mean())
    error = means.std(ddof=1) / math.sqrt(64)
    assert math.isclose(high - low, 2 * 1.96 * error, rel_tol=0.15)
    assert low < found.loss < high


def test_the_ratio_is_paired() -> None:
    generator = np.random.default_rng(2)
    documents = np.repeat(np.arange(40), 10)
    reference = generator.normal(3.0, 1.0, size=40)[documents]
    found = figures(scores(reference + 0.01, reference, np.full(400, 1e-3)), documents, documents).divergence
    assert found is not None
    ratio = found.perplexity_ratio
    assert math.isclose(ratio.value, math.exp(0.01))
    assert ratio.interval is not None
    np.testing.assert_allclose(ratio.interval, math.exp(0.01))
    assert math.isclose(found.reference_perplexity, math.exp(reference.mean()))


def test_percentiles_of_the_divergence() -> None:
    documents = np.arange(1001) // 10
    divergence = np.arange(1001) / 1000
    found = figures(scores(np.ones(1001), np.ones(1001), divergence), documents, documents).divergence
    assert found is not None
    assert math.isclose(found.mean.value, 0.5)
    assert (found.median, found.percentile_99, found.largest) == (0.5, 0.99, 1.0)
    assert math.isclose(found.percentile_99_9, 0.999)
    assert math.isclose(found.same_top.value, 500 / 1001)


def test_figures_repeat() -> None:
    values = np.random.default_rng(4).normal(size=90)
    documents = np.arange(90) // 9
    one, two = (figures(scores(values), documents, documents) for _ in range(2))
    assert one == two
    assert isinstance(one.perplexity, Estimate)
