"""Files of multiple-choice questions: MMLU's CSV, C-Eval's CSV and JSON Lines."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from qwchat.errors import UsageError
from qwchat.evaluation.choice_files import ChoiceQuestion, read_task, subject_of

MMLU = 'What is 2 + 3?,4,5,6,7,B\n\n"Two lines,\nand a comma",a,"say ""b""",c,d, D \n'
CEVAL = "\ufeffid,question,A,B,C,D,answer,explanation\n0,一加一等于几？,一,二,三,四,B,\n1,  X ,a,b,c,d,A,why\n"


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def line(**changes: object) -> str:
    return json.dumps({"question": "Q?", "choices": ["x", "y"], "answer": 1} | changes) + "\n"


def test_mmlu_has_six_columns_and_no_header(tmp_path: Path) -> None:
    found = read_task(write(tmp_path, "abstract_algebra_test.csv", MMLU))
    assert found.form == "mmlu"
    assert found.sha256 == hashlib.sha256(MMLU.encode()).hexdigest()
    assert found.questions == (
        ChoiceQuestion("What is 2 + 3?", ("4", "5", "6", "7"), 1, "abstract_algebra", 1),
        ChoiceQuestion("Two lines,\nand a comma", ("a", 'say "b"', "c", "d"), 3, "abstract_algebra", 3),
    )


def test_ceval_has_a_header_and_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    found = read_task(write(tmp_path, "law_val.csv", CEVAL))
    assert found.form == "ceval"
    assert found.questions == (
        ChoiceQuestion("一加一等于几？", ("一", "二", "三", "四"), 1, "law", 2),
        ChoiceQuestion("X", ("a", "b", "c", "d"), 0, "law", 3),
    )


def test_columns_are_found_by_their_titles(tmp_path: Path) -> None:
    found = read_task(write(tmp_path, "x.csv", "answer,D,C,B,A,question\r\nC,4,3,2,1,Q?\r\n"))
    assert found.questions == (ChoiceQuestion("Q?", ("1", "2", "3", "4"), 2, "x", 2),)


def test_json_lines_have_any_number_of_options(tmp_path: Path) -> None:
    many = [f"option {number}" for number in range(26)]
    text = line(subject="towns") + "\n" + line(choices=many, answer="Z") + line(question="a\u2028b", answer=0)
    found = read_task(write(tmp_path, "plain.jsonl", text))
    assert found.form == "jsonl"
    assert [(each.subject, each.answer, each.line) for each in found.questions] == [
        ("towns", 1, 1),
        ("plain", 25, 3),
        ("plain", 0, 4),
    ]
    assert found.questions[1].choices == tuple(many)


def test_subjects_come_from_names() -> None:
    names = ("a/law_val.csv", "law_dev.csv", "high_school_biology_test.csv", "law.csv", "_test.csv")
    assert [subject_of(Path(name)) for name in names] == ["law", "law", "high_school_biology", "law", "_test"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.txt", "a", "has an unknown form: give a .csv file (MMLU, C-Eval) or a .jsonl file"),
        ("x.csv", "", "has no questions: give a file with at least one"),
        ("x.jsonl", "\n \n", "has no questions: give a file with at least one"),
        ("x.csv", "id,question,A,B,C,D,answer\n", "has no questions: give a file with at least one"),
        ("x.csv", b"a\0b", "is a binary file (contains NUL bytes)"),
        ("x.csv", b"caf\xe9,1,2,3,4,A\n", "is not UTF-8 text (byte 3)"),
        ("x.csv", "Q?,1,2,3,4,A\n\nQ?,1,2,3,A\n", "line 3 has 5 columns, expected 6 (question, A, B, C, D, answer)"),
        ("x.csv", 'Q?,1,2,3,4,A\n"Q?,1,2\n', "line 2 is not valid CSV (unexpected end of data)"),
        ("x.csv", 'Q?,1,2,3,4,A\n"Q"?,1,2,3,4,A\n', "line 2 is not valid CSV"),
        ("x.csv", "Q?,1,2,3,4,E\n", "line 1: the answer 'E' is not one of the options (A to D)"),
        ("x.csv", "Q?,1,2,3,4,\n", "line 1: the answer '' is not one of the options (A to D)"),
        ("x.csv", "Q?,1,2,3,4,AB\n", "line 1: the answer 'AB' is not one of the options (A to D)"),
        ("x.csv", "  ,1,2,3,4,A\n", "line 1 has an empty question"),
        ("x.csv", "id,question,A,B,C,answer\n1,Q?,1,2,3,A\n", "line 1 has no column D (or several)"),
        ("x.csv", "question,A,B,C,D,answer,A\n", "line 1 has no column A (or several)"),
        ("x.csv", "question,A,B,C,D,answer\nQ?,1,2,3,4\n", "line 2 has 5 columns, the header 6"),
        ("x.csv", f"{'Q' * 200_000},1,2,3,4,A\n", "line 1 is not valid CSV (field larger than field limit (131072))"),
        ("x.jsonl", "{\n", "line 1 is not valid JSON: give one question per line"),
        ("x.jsonl", line() + "[" * 100_000, "line 2 is not valid JSON: give one question per line"),
        ("x.jsonl", f'{{"question": {"9" * 5000}}}', "line 1 is not valid JSON: give one question per line"),
        ("x.jsonl", "[]", "line 1 is not an object"),
        ("x.jsonl", '{"question": "Q?", "answer": 0}', 'line 1 has no "choices"'),
        ("x.jsonl", line(question=3), "line 1: question is 3, expected a string"),
        ("x.jsonl", line(choices="xy"), "line 1: choices is 'xy', expected a list of strings"),
        ("x.jsonl", line(choices=["x", 2]), "line 1: choices is ['x', 2], expected a list of strings"),
        ("x.jsonl", line(choices=["x", " "]), "line 1 has an empty option"),
        ("x.jsonl", line(choices=["x"], answer=0), "line 1 has 1 options, expected 2 to 26"),
        ("x.jsonl", line(choices=["x"] * 27), "line 1 has 27 options, expected 2 to 26"),
        ("x.jsonl", line(answer=2), "line 1: the answer 2 is not one of the options (0 to 1 or A to B)"),
        ("x.jsonl", line(answer=-1), "line 1: the answer -1 is not one of the options"),
        ("x.jsonl", line(answer=True), "line 1: the answer True is not one of the options"),
        ("x.jsonl", line(answer="y"), "line 1: the answer 'y' is not one of the options (A to B)"),
        ("x.jsonl", line(subject=["a"]), "line 1: subject is ['a'], expected a string of at most 200 characters"),
        ("x.jsonl", line(question="\ud800"), "line 1 contains a lone surrogate"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(UsageError) as caught:
        read_task(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "x.jsonl", line() * 3)
    monkeypatch.setattr("qwchat.evaluation.choice_files.MAX_QUESTIONS", 2)
    with pytest.raises(UsageError, match="has more than 2 questions: split it"):
        read_task(path)
    monkeypatch.setattr("qwchat.evaluation.choice_files.MAX_TASK_BYTES", 10)
    with pytest.raises(UsageError, match="is larger than the limit of 10 bytes"):
        read_task(path)


def test_control_characters_in_names_and_cells_are_not_shown_raw(tmp_path: Path) -> None:
    path = write(tmp_path, "a\x1b[2J.csv", "Q?,1,2,3,4,\x1b[31m\n")
    with pytest.raises(UsageError) as caught:
        read_task(path)
    assert "\x1b" not in str(caught.value)
