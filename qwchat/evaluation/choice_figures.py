"""Accuracy of answers to multiple-choice questions, with 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwchat.evaluation.choice_files import ChoiceQuestion
from qwchat.evaluation.figures import Estimate

_Z = 1.959963984540054  # Normal quantile of a two-sided interval of 95 %.


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        log_likelihoods: of each option, in nats.
        greedy: whether each option is what greedy decoding writes.
    """

    log_likelihoods: tuple[float, ...]
    greedy: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class Grades:
    """Which questions were answered correctly, by each way of choosing an option; (questions,) bool each.

    Attributes:
        plain: the option with the highest log-likelihood.
        per_character: the highest log-likelihood per character of the option (`acc_norm` of lm-evaluation-harness).
        per_byte: the highest log-likelihood per byte in UTF-8 (`acc_bytes`).
    """

    plain: NDArray[np.bool_]
    per_character: NDArray[np.bool_]
    per_byte: NDArray[np.bool_]


@dataclass(frozen=True)
class Accuracy:
    """Accuracies of some questions.

    Attributes:
        questions: number of questions.
        correct: how many were answered correctly.
        acc: share of correct answers.
        acc_norm: the same, by log-likelihood per character; None if the options are letters.
        acc_bytes: the same, per byte; None if the options are letters.
    """

    questions: int
    correct: int
    acc: Estimate
    acc_norm: Estimate | None
    acc_bytes: Estimate | None


def predict(answer: Answer, lengths: Sequence[int]) -> int:
    """Return the option with the highest log-likelihood per length; the first one of equals."""
    return int(np.argmax(np.array(answer.log_likelihoods) / np.array(lengths, np.float64)))


def grade(questions: Sequence[ChoiceQuestion], answers: Sequence[Answer]) -> Grades:
    """Return which answers are right."""
    right: list[tuple[bool, bool, bool]] = []
    for question, answer in zip(questions, answers, strict=True):
        texts = question.choices
        lengths = ([1] * len(texts), [len(text) for text in texts], [len(text.encode()) for text in texts])
        first, second, third = (predict(answer, each) == question.answer for each in lengths)
        right.append((first, second, third))
    columns = np.array(right, np.bool_).reshape(-1, 3).T
    return Grades(columns[0], columns[1], columns[2])


def accuracy(grades: Grades, chosen: NDArray[np.bool_], *, letters: bool) -> Accuracy:
    """Return the accuracies of the `chosen` (questions,) bool questions.

    `letters`: the options are letters, which have one length.
    """
    plain = grades.plain[chosen]
    others = (None, None) if letters else (_share(grades.per_character[chosen]), _share(grades.per_byte[chosen]))
    return Accuracy(len(plain), int(plain.sum()), _share(plain), *others)


def _share(right: NDArray[np.bool_]) -> Estimate:
    """Return the share of right answers with its interval after Wilson (1927)."""
    n, p = len(right), float(right.mean())
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    return Estimate(p, (centre - half if p else 0.0, centre + half if p < 1 else 1.0))


def macro_average(right: NDArray[np.bool_], subjects: Sequence[str]) -> Estimate:
    """Return the mean of the accuracies of all subjects, each counted once.

    The interval is that of a normal distribution, from the variance within each subject; None if a subject has fewer
    than two questions.

    Args:
        right: (questions,) bool.
        subjects: subject of each question.
    """
    _, members = np.unique(np.array(subjects), return_inverse=True)
    sizes = np.bincount(members)
    means = np.bincount(members, right) / sizes
    value = float(means.mean())
    if sizes.min() < 2:
        return Estimate(value, None)
    error = math.sqrt(float((means * (1 - means) / (sizes - 1)).sum())) / len(sizes)
    return Estimate(value, (max(0.0, value - _Z * error), min(1.0, value + _Z * error)))


def paired_difference(right: NDArray[np.bool_], other: NDArray[np.bool_]) -> Estimate:
    """Return the accuracy less that of another model on the same questions, with a normal interval of the pairs.

    The interval is None for fewer than two questions.
    """
    difference = right.astype(np.float64) - other
    value = float(difference.mean())
    if len(difference) < 2:
        return Estimate(value, None)
    half = _Z * float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return Estimate(value, (value - half, value + half))
