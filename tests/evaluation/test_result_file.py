"""Results as files: what is continued, and what is refused and kept as it is."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from qwchat.errors import UsageError
from qwchat.evaluation.choice_figures import Answer
from qwchat.evaluation.multiple_choice import Answered, Task, read_tasks
from qwchat.evaluation.result_file import ResultFile, describe, read_result
from tests.evaluation.choice_tasks import write_tasks


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    return read_tasks([write_tasks(tmp_path) / "plain.jsonl"], 0, None, None)


def header(tasks: list[Task]) -> dict[str, Any]:
    return describe(tasks, "0123", {"chat": False}, "mini")


def written(path: Path, tasks: list[Task]) -> list[bytes]:
    """Write a complete result and return its lines."""
    with ResultFile(path, tasks, header(tasks)) as file:
        for index, question in enumerate(tasks[0].questions):
            options = len(question.choices)
            file.add(Answered(0, index, Answer((-0.1,) * options, (True,) * options)), 0)
        file.finish({"acc": 1.0})
    return path.read_bytes().splitlines(keepends=True)


def refusal(path: Path, tasks: list[Task]) -> str:
    """Return the message that refuses to continue a result, which stays as it is."""
    before = path.read_bytes()
    with pytest.raises(UsageError) as caught:
        ResultFile(path, tasks, header(tasks))
    assert path.read_bytes() == before
    return str(caught.value)


def test_answers_are_read_back_exactly(tmp_path: Path, tasks: list[Task]) -> None:
    path = tmp_path / "result.jsonl"
    answer = Answer((-0.1, -1 / 3, -1e-300), (True, False, False))
    with ResultFile(path, tasks, header(tasks)) as file:
        file.add(Answered(0, 0, answer), 0)
    with path.open("ab") as appended:
        appended.write(b'{"task": 0, "index": 1, "line"')
    stored = read_result(path, tasks)
    assert (stored.answers, stored.complete) == ({(0, 0): answer}, False)
    with ResultFile(path, tasks, header(tasks)) as file:
        assert file.answers == {(0, 0): answer}
    assert path.read_bytes().count(b"\n") == 2
    assert path.read_bytes().endswith(b"\n")


def test_a_complete_result_stays_as_it_is(tmp_path: Path, tasks: list[Task]) -> None:
    path = tmp_path / "result.jsonl"
    lines = written(path, tasks)
    with ResultFile(path, tasks, header(tasks)) as file:
        assert (len(file.answers), file.complete) == (3, True)
        file.finish({"acc": 0.5})
    assert path.read_bytes() == b"".join(lines)


def test_damage_is_named_with_its_line(tmp_path: Path, tasks: list[Task]) -> None:
    path = tmp_path / "result.jsonl"
    lines = written(path, tasks)
    record = json.loads(lines[1])
    many = b"[" * 100_000 + b"\n"
    for rest, message in (
        (lines[1] + lines[1], "is damaged at line 3: remove the file, and evaluate again"),
        (b"[1]\n", "is damaged at line 2"),
        (many, "is damaged at line 2"),
        (json.dumps(record | {"index": 3}).encode() + b"\n", "is damaged at line 2"),
        (json.dumps(record | {"task": True}).encode() + b"\n", "is damaged at line 2"),
        (json.dumps(record | {"log_likelihoods": [-1.0]}).encode() + b"\n", "is damaged at line 2"),
        (json.dumps(record | {"log_likelihoods": [-1.0, -2.0, float("nan")]}).encode() + b"\n", "is damaged at line 2"),
        (json.dumps(record | {"greedy": [0, 1, 0]}).encode() + b"\n", "is damaged at line 2"),
        (lines[1] + lines[-1], "is damaged: it lacks 2 answers; remove the file, and evaluate again"),
        (lines[1] + lines[-1] + lines[2], "is damaged at line 4"),
    ):
        path.write_bytes(lines[0] + rest)
        assert message in refusal(path, tasks)


def test_other_files_are_not_overwritten(tmp_path: Path, tasks: list[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.jsonl"
    first = written(path, tasks)[0]
    for content in (b"Dear diary\n", b"Dear diary", b'{"a": 1}\n', first.replace(b'eval": 1', b'eval": 2')):
        path.write_bytes(content)
        assert "is not a result of" in refusal(path, tasks)
    path.write_bytes(first.replace(b'"tasks": [', b'"tasks": [1, '))
    assert "belongs to other questions or examples" in refusal(path, tasks)
    path.write_bytes(first.replace(b'"0123"', b"[]"))
    assert "belongs to another model" in refusal(path, tasks)
    path.write_bytes(first.replace(b"false", b"true"))
    assert "belongs to other settings" in refusal(path, tasks)
    monkeypatch.setattr("qwchat.evaluation.result_file.MAX_RESULT_BYTES", 20)
    assert "is larger than the limit of 20 bytes" in refusal(path, tasks)


def test_a_result_must_be_a_file_that_nobody_else_writes(tmp_path: Path, tasks: list[Task]) -> None:
    for name, message in (
        ("/dev/null", "is not a regular file: give another file for the result"),
        (str(tmp_path), "cannot be written: Is a directory"),
        (str(tmp_path / "no" / "where"), "cannot be written: No such file or directory"),
        (str(tmp_path / "a\0b"), "cannot be written: embedded null byte"),
    ):
        with pytest.raises(UsageError, match=message):
            ResultFile(Path(name), tasks, header(tasks))
    path = tmp_path / "result.jsonl"
    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "is being written by another process: give another file" in refusal(path, tasks)
