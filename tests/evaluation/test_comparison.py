"""Scores of tokens, compared with the definitions in float64."""

from __future__ import annotations

import numpy as np
import pytest

from qwchat.evaluation.comparison import join, score


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


@pytest.mark.parametrize(("spread", "noise"), [(1.0, 1e-3), (4.0, 0.1), (30.0, 2.0), (0.0, 0.0)])
@pytest.mark.parametrize("shift", [0.0, -300.0, 5000.0])
def test_scores_follow_the_definitions(spread: float, noise: float, shift: float) -> None:
    generator = np.random.default_rng(3)
    reference = (spread * generator.normal(size=(40, 3000))).astype(np.float32)
    logits = (reference + noise * generator.normal(size=reference.shape)).astype(np.float32) + np.float32(shift)
    targets = generator.integers(3000, size=40)
    found = score(logits, targets, reference)
    p, q = log_softmax(reference), log_softmax(logits)
    rows = np.arange(40)
    np.testing.assert_allclose(found.nll, -q[rows, targets], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.reference_nll, -p[rows, targets], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        found.divergence, (np.exp(p) * (p - q)).sum(axis=1), rtol=1e-5, atol=2e-7 * (1 + abs(shift))
    )
    assert found.same_top.tolist() == (logits.argmax(axis=1) == reference.argmax(axis=1)).tolist()


def test_a_model_does_not_differ_from_itself() -> None:
    logits = np.random.default_rng(5).normal(size=(7, 500)).astype(np.float32)
    found = score(logits, np.arange(7), logits)
    assert found.divergence.tolist() == [0.0] * 7
    assert found.same_top.all()
    assert found.nll.tolist() == found.reference_nll.tolist()


def test_without_a_reference_there_is_no_divergence() -> None:
    found = score(np.zeros((3, 4), np.float32), np.array([0, 1, 2]))
    np.testing.assert_allclose(found.nll, np.log(4))
    assert [len(part) for part in (found.reference_nll, found.divergence, found.same_top)] == [0, 0, 0]
    assert join([found, found]).nll.tolist() == found.nll.tolist() * 2
