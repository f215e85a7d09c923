"""Accuracies and their intervals, against formulas written another way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qwchat.evaluation.choice_figures import Answer, accuracy, grade, macro_average, paired_difference
from qwchat.evaluation.choice_files import ChoiceQuestion


def question(*choices: str, answer: int = 0) -> ChoiceQuestion:
    return ChoiceQuestion("?", choices, answer, "x", 1)


def answer(*log_likelihoods: float) -> Answer:
    return Answer(log_likelihoods, (False,) * len(log_likelihoods))


def test_options_are_chosen_by_likelihood_per_character_and_per_byte() -> None:
    questions = [question("ab", "é" * 2, "abcdefgh", answer=each) for each in range(3)]
    # Per character -2, -1.9 and -0.94; per byte -2, -0.95 and -0.94.
    grades = grade(questions, [answer(-4, -3.8, -7.52)] * 3)
    assert grades.plain.tolist() == [False, True, False]
    assert grades.per_character.tolist() == [False, False, True]
    assert grades.per_byte.tolist() == [False, False, True]
    # Per character -2, -1.9 and -0.9625; per byte -2, -0.95 and -0.9625.
    grades = grade(questions, [answer(-4, -3.8, -7.7)] * 3)
    assert grades.per_character.tolist() == [False, False, True]
    assert grades.per_byte.tolist() == [False, True, False]


def test_the_first_of_equal_options_is_chosen() -> None:
    assert grade([question("a", "b")], [answer(-1.5, -1.5)]).plain.tolist() == [True]


def test_an_interval_holds_the_shares_that_a_score_test_accepts() -> None:
    grades = grade([question("a", "b")] * 40, [answer(-1, -2)] * 30 + [answer(-2, -1)] * 10)
    found = accuracy(grades, np.ones(40, np.bool_), letters=True)
    assert (found.questions, found.correct, found.acc_norm) == (40, 30, None)
    assert found.acc.value == 0.75
    assert found.acc.interval is not None
    for bound in found.acc.interval:
        assert math.isclose(abs(0.75 - bound) / math.sqrt(bound * (1 - bound) / 40), 1.959964, rel_tol=1e-5)
    every = accuracy(grades, np.arange(40) < 30, letters=False)
    assert every.acc.value == 1.0
    assert every.acc.interval is not None
    assert every.acc.interval[0] == pytest.approx(30 / (30 + 1.959964**2), rel=1e-6)
    assert every.acc.interval[1] == 1.0
    assert every.acc_norm is not None


def test_each_subject_counts_once_in_the_macro_average() -> None:
    right = np.array([True, True, True, False, True, False])
    found = macro_average(right, ["a", "a", "a", "a", "b", "b"])
    assert found.value == pytest.approx((0.75 + 0.5) / 2)
    error = math.sqrt(np.var(right[:4], ddof=1) / 4 + np.var(right[4:], ddof=1) / 2) / 2
    assert found.interval is not None
    assert found.interval[0] == pytest.approx(found.value - 1.959964 * error, rel=1e-6)
    assert macro_average(right[:5], ["a", "a", "a", "a", "b"]).interval is None


def test_a_paired_difference_cancels_what_both_get_right() -> None:
    own = np.array([True] * 60 + [True, True, True, False])
    other = np.array([True] * 60 + [False, False, True, True])
    found = paired_difference(own, other)
    assert found.value == pytest.approx(1 / 64)
    deviation = np.std(np.array([0] * 60 + [1, 1, 0, -1]), ddof=1)
    assert found.interval is not None
    assert found.interval[1] - found.value == pytest.approx(1.959964 * deviation / 8, rel=1e-6)
    assert paired_difference(own, own).interval == (0.0, 0.0)
    assert paired_difference(own[:1], other[:1]).interval is None
