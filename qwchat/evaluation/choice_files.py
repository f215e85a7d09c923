"""Files of multiple-choice questions: MMLU's CSV, C-Eval's CSV and JSON Lines."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quant.json_fields import is_unicode, short_repr
from quant.safe_files import read_bounded
from qwchat.characters import sanitise_name
from qwchat.errors import UsageError
from qwchat.evaluation.documents import decode_text

Form = Literal["mmlu", "ceval", "jsonl"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_TASK_BYTES = 256 << 20
MAX_QUESTIONS = 1_000_000
_MAX_SUBJECT = 200
_COLUMNS = ("question", "A", "B", "C", "D", "answer")
_SPLITS = ("_test", "_val", "_dev")


@dataclass(frozen=True)
class ChoiceQuestion:
    """A multiple-choice question.

    Attributes:
        text: the question, without surrounding white space.
        choices: texts of the options, 2 to 26.
        answer: index of the right option.
        subject: what it is about; that of its file unless the line has its own.
        line: line of the file where it begins.
    """

    text: str
    choices: tuple[str, ...]
    answer: int
    subject: str
    line: int


@dataclass(frozen=True)
class TaskFile:
    """A file of questions.

    Attributes:
        name: its path for messages, safe to print.
        path: its path.
        form: how it is written.
        sha256: hash of its bytes, in hexadecimal.
        questions: at least one.
    """

    name: str
    path: Path
    form: Form
    sha256: str
    questions: tuple[ChoiceQuestion, ...]

    @property
    def subject(self) -> str:
        """Subject that the name of the file stands for, such as `abstract_algebra`."""
        return subject_of(self.path)


def read_task(path: Path) -> TaskFile:
    """Read a file of questions.

    Raises:
        UsageError: the file cannot be read, has another form, or is larger than a limit; the message has the line.
    """
    name, suffix = sanitise_name(str(path)), path.suffix.lower()
    if suffix not in (".csv", ".jsonl"):
        raise UsageError(f"{name} has an unknown form: give a .csv file (MMLU, C-Eval) or a .jsonl file")
    data = read_bounded(path, UsageError, MAX_TASK_BYTES)
    text = decode_text(data, name)
    if suffix == ".jsonl":
        form: Form = "jsonl"
        questions = _limited(_parse_json_lines(text, name, subject_of(path)), name)
    else:
        rows = _rows(text, name)
        header = rows[0][1] if rows and _is_header(rows[0][1]) else None
        form = "mmlu" if header is None else "ceval"
        found = (
            _positional(rows, name) if header is None else _by_column(rows[1:], header, f"{name}, line {rows[0][0]:,}")
        )
        questions = _limited(_parse_cells(found, subject_of(path)), name)
    if not questions:
        raise UsageError(f"{name} has no questions: give a file with at least one")
    return TaskFile(name, path, form, hashlib.sha256(data).hexdigest(), questions)


def subject_of(path: Path) -> str:
    """Return the subject of a file: its name without the ending, and without `_test`, `_val` or `_dev`."""
    stem = path.stem
    for split in _SPLITS:
        if stem.endswith(split) and len(stem) > len(split):
            return stem[: -len(split)]
    return stem


def _limited(questions: Iterator[ChoiceQuestion], name: str) -> tuple[ChoiceQuestion, ...]:
    found: list[ChoiceQuestion] = []
    for question in questions:
        if len(found) == MAX_QUESTIONS:
            raise UsageError(f"{name} has more than {MAX_QUESTIONS:,} questions: split it")
        found.append(question)
    return tuple(found)


_Cells = tuple[str, Sequence[str], int]
"""Where a row is, for messages; its cells in the order of _COLUMNS; its line."""


def _rows(text: str, name: str) -> list[tuple[int, list[str]]]:
    """Return the rows of a CSV text that are not empty, each with the line where it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    line = 1
    try:
        for row in reader:
            if row:
                rows.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(f"{name}, line {line:,} is not valid CSV ({error}): correct the line") from error
    return rows


def _is_header(row: Sequence[str]) -> bool:
    titles = [title.strip().lower() for title in row]
    return "question" in titles and "answer" in titles


def _positional(rows: list[tuple[int, list[str]]], name: str) -> Iterator[_Cells]:
    for line, row in rows:
        where = f"{name}, line {line:,}"
        if len(row) != len(_COLUMNS):
            raise UsageError(
                f"{where} has {len(row):,} columns, expected {len(_COLUMNS)} ({', '.join(_COLUMNS)}): correct the line"
            )
        yield where, row, line


def _by_column(rows: list[tuple[int, list[str]]], header: Sequence[str], where: str) -> Iterator[_Cells]:
    name = where.rpartition(", line ")[0]
    titles = [title.strip() for title in header]
    missing = [title for title in _COLUMNS if titles.count(title) != 1]
    if missing:
        raise UsageError(f"{where} has no column {missing[0]} (or several): expected {', '.join(_COLUMNS)}")
    places = [titles.index(title) for title in _COLUMNS]
    for line, row in rows:
        where = f"{name}, line {line:,}"
        if len(row) != len(header):
            raise UsageError(f"{where} has {len(row):,} columns, the header {len(header):,}: correct the line")
        yield where, [row[place] for place in places], line


def _parse_cells(rows: Iterator[_Cells], subject: str) -> Iterator[ChoiceQuestion]:
    for where, cells, line in rows:
        text, *choices, answer = cells
        yield _question(text, choices, answer.strip(), subject, where, line)


def _parse_json_lines(text: str, name: str, subject: str) -> Iterator[ChoiceQuestion]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number:,}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where} is not valid JSON: give one question per line") from error
        if not isinstance(value, dict):
            raise UsageError(f'{where} is not an object: give {{"question": …, "choices": […], "answer": …}}')
        yield _from_object(value, subject, where, number)


def _from_object(value: dict[str, Any], subject: str, where: str, line: int) -> ChoiceQuestion:
    missing = [key for key in ("question", "choices", "answer") if value.get(key) is None]
    if missing:
        raise UsageError(f'{where} has no "{missing[0]}": give {{"question": …, "choices": […], "answer": …}}')
    text, choices, own = value["question"], value["choices"], value.get("subject", subject)
    if not isinstance(text, str):
        raise UsageError(f"{where}: question is {short_repr(text)}, expected a string")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise UsageError(f"{where}: choices is {short_repr(choices)}, expected a list of strings")
    if not isinstance(own, str) or len(own) > _MAX_SUBJECT:
        raise UsageError(
            f"{where}: subject is {short_repr(own)}, expected a string of at most {_MAX_SUBJECT} characters"
        )
    if not all(map(is_unicode, (text, own, *choices))):
        raise UsageError(f"{where} contains a lone surrogate, which is not a character: correct the line")
    if "" in (choice.strip() for choice in choices):
        raise UsageError(f"{where} has an empty option: give each option a text")
    return _question(text, choices, value["answer"], own, where, line)


def _question(text: str, choices: Sequence[str], answer: object, subject: str, where: str, line: int) -> ChoiceQuestion:
    """Return a question, after checking its number of options and its answer, an index or a letter."""
    if not text.strip():
        raise UsageError(f"{where} has an empty question: correct or remove the line")
    if not 2 <= len(choices) <= len(LETTERS):
        raise UsageError(f"{where} has {len(choices):,} options, expected 2 to {len(LETTERS)}: correct the line")
    last = LETTERS[len(choices) - 1]
    place = answer
    if isinstance(answer, str):
        place = LETTERS.find(answer) if len(answer) == 1 else -1
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(choices):
        expected = f"A to {last}" if isinstance(answer, str) else f"0 to {len(choices) - 1} or A to {last}"
        raise UsageError(f"{where}: the answer {short_repr(answer)} is not one of the options ({expected})")
    return ChoiceQuestion(text.strip(), tuple(choices), place, subject, line)
