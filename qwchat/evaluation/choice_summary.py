"""Figures of answered multiple-choice tasks: of all questions, of each file and of each subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qwchat.evaluation.choice_figures import (
    Accuracy,
    Answer,
    Grades,
    accuracy,
    grade,
    macro_average,
    paired_difference,
)
from qwchat.evaluation.figures import Estimate
from qwchat.evaluation.multiple_choice import Task

Answers = Mapping[tuple[int, int], Answer]
"""Answer to each question, by (task, index)."""


@dataclass(frozen=True)
class Summary:
    """Figures of all tasks.

    Attributes:
        overall: of all questions together, each counted once.
        macro: mean of the accuracies of the subjects, each subject counted once.
        tasks: of each file, in order.
        subjects: of each subject, in the order of the files.
    """

    overall: Accuracy
    macro: Estimate
    tasks: tuple[Accuracy, ...]
    subjects: dict[str, Accuracy]


@dataclass(frozen=True)
class Comparison:
    """Accuracy of another model on the same questions, and the accuracy less that one."""

    acc: float
    difference: Estimate


def summarise(tasks: Sequence[Task], answers: Answers) -> Summary:
    """Return the figures of completely answered tasks."""
    grades = _grades(tasks, answers)
    numbers = np.array([number for number, task in enumerate(tasks) for _ in task.questions])
    subjects = [question.subject for task in tasks for question in task.questions]
    labels = np.array(subjects)
    letters = [task.file.form != "jsonl" for task in tasks]
    with_letters = np.array([letters[number] for number in numbers])
    by_subject = {
        name: accuracy(grades, labels == name, letters=bool(with_letters[labels == name].any()))
        for name in dict.fromkeys(subjects)
    }
    return Summary(
        accuracy(grades, numbers >= 0, letters=any(letters)),
        macro_average(grades.plain, subjects),
        tuple(accuracy(grades, numbers == number, letters=letters[number]) for number in range(len(tasks))),
        by_subject,
    )


def compare(tasks: Sequence[Task], answers: Answers, other: Answers) -> Comparison:
    """Return the comparison with another model's answers to the same questions."""
    own, others = (_grades(tasks, each).plain for each in (answers, other))
    return Comparison(float(others.mean()), paired_difference(own, others))


def _grades(tasks: Sequence[Task], answers: Answers) -> Grades:
    questions = [question for task in tasks for question in task.questions]
    found = [answers[number, index] for number, task in enumerate(tasks) for index in range(len(task.questions))]
    return grade(questions, found)
