"""Scores of predicted tokens: negative log-likelihoods, and the divergence from another model's predictions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of some tokens, in nats.

    Attributes:
        nll: negative log-likelihood of each token, (tokens,) f64.
        reference_nll: that of the reference model; empty without one.
        divergence: Kullback-Leibler divergence of the model's distribution from the reference's, KL(reference ‖ model),
            (tokens,) f64; empty without a reference.
        same_top: whether both models have the same most likely token, (tokens,) bool; empty without a reference.
    """

    nll: Floats
    reference_nll: Floats
    divergence: Floats
    same_top: NDArray[np.bool_]


def log_sum_exp(logits: NDArray[np.float32]) -> tuple[NDArray[np.float32], Floats]:
    """Return the exponentials of logits less their largest, (n, vocab) f32, and the logarithms of the sums, (n,) f64.

    The logarithm is that of the sum of exponentials of the logits as they are.
    """
    largest = logits.max(axis=1, keepdims=True)
    exponentials = np.exp(logits - largest)
    sums = exponentials.sum(axis=1, dtype=np.float64)
    return exponentials, np.log(sums) + largest[:, 0]


def score(
    logits: NDArray[np.float32], targets: NDArray[np.int64], reference: NDArray[np.float32] | None = None
) -> Scores:
    """Score the predictions of `targets`.

    With logarithms z of the normalisers, KL = sum p (a - b) - (z_a - z_b) for logits a of the reference with
    probabilities p, and logits b of the model. The sums are in float64, so that small divergences are exact to 1e-7.

    Args:
        logits: (n, vocab) f32.
        targets: token ids, (n,) i64.
        reference: logits of the reference model, (n, vocab) f32.
    """
    rows = np.arange(len(targets))
    _, normaliser = log_sum_exp(logits)
    nll = normaliser - logits[rows, targets]
    if reference is None:
        return Scores(nll, np.empty(0), np.empty(0), np.empty(0, np.bool_))
    weights, reference_normaliser = log_sum_exp(reference)
    difference = np.einsum("ij,ij->i", weights, reference - logits, dtype=np.float64)
    expected = difference / weights.sum(axis=1, dtype=np.float64)
    divergence = np.maximum(expected - (reference_normaliser - normaliser), 0.0)
    same = logits.argmax(axis=1) == reference.argmax(axis=1)
    return Scores(nll, reference_normaliser - reference[rows, targets], divergence, same)


def join(parts: list[Scores]) -> Scores:
    """Return the scores of all parts in order."""
    columns = zip(*((part.nll, part.reference_nll, part.divergence, part.same_top) for part in parts), strict=True)
    return Scores(*(np.concatenate(column) for column in columns))
