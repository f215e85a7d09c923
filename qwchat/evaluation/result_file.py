"""Result of an evaluation as JSON Lines: settings, a line for each answer, figures. A stopped run continues from it."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from quant.destination import append_record
from quant.json_fields import is_int_between
from quant.safe_files import read_bounded
from qwchat.characters import sanitise_name
from qwchat.errors import UsageError
from qwchat.evaluation.choice_figures import Answer
from qwchat.evaluation.choice_files import LETTERS
from qwchat.evaluation.multiple_choice import Answered, Task

VERSION = 1
MAX_RESULT_BYTES = 1 << 30
_KEY = "qwchat_eval"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def describe(tasks: Sequence[Task], fingerprint: str, settings: Mapping[str, object], name: str) -> dict[str, Any]:
    """Return the first line of a result: what the answers depend on, and names for readers.

    Args:
        tasks: the tasks.
        fingerprint: of the model.
        settings: everything else that the answers depend on.
        name: of the model.
    """
    files = [
        {
            "name": task.file.path.name,
            "form": task.file.form,
            "sha256": task.file.sha256,
            "questions": len(task.questions),
            "examples_sha256": None if task.examples is None else task.examples.sha256,
        }
        for task in tasks
    ]
    return {
        _KEY: VERSION,
        "model": {"name": name, "fingerprint": fingerprint},
        "settings": dict(settings),
        "tasks": files,
    }


@dataclass
class StoredResult:
    """A result that was read.

    Attributes:
        header: its first line.
        answers: answer to each finished question, by (task, index).
        complete: whether it has figures, and so all answers.
        size: bytes up to the last complete line.
    """

    header: dict[str, Any]
    answers: dict[tuple[int, int], Answer] = field(default_factory=dict)
    complete: bool = False
    size: int = 0


def read_result(path: Path, tasks: Sequence[Task]) -> StoredResult:
    """Read the result of an evaluation of `tasks`.

    Raises:
        UsageError: the file cannot be read, is damaged, or belongs to other tasks.
    """
    name, data = sanitise_name(str(path)), read_bounded(path, UsageError, MAX_RESULT_BYTES)
    lines = data.split(b"\n")[:-1]  # An incomplete last line has no newline.
    header = _object(lines[0]) if lines else None
    if header is None or header.get(_KEY) != VERSION:
        raise UsageError(f"{name} is not a result of this version of qwchat eval: give another file, or remove it")
    result = StoredResult(header, size=sum(len(line) + 1 for line in lines))
    if _files(header) != _files(describe(tasks, "", {}, "")):
        raise UsageError(f"{name} belongs to other questions or examples: give another file, or remove it")
    for number, line in enumerate(lines[1:], 2):
        value = _object(line)
        read = None if value is None or result.complete else _answer(value, tasks)
        if value is not None and "result" in value and not result.complete:
            result.complete = True
        elif read is not None and (read.task, read.index) not in result.answers:
            result.answers[read.task, read.index] = read.answer
        else:
            raise UsageError(f"{name} is damaged at line {number:,}: remove the file, and evaluate again")
    missing = sum(len(task.questions) for task in tasks) - len(result.answers)
    if result.complete and missing:
        raise UsageError(f"{name} is damaged: it lacks {missing:,} answers; remove the file, and evaluate again")
    return result


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _files(header: Mapping[str, Any]) -> object:
    """Return what identifies the tasks of a result: everything but their names."""
    listed = header.get("tasks")
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        return None
    return [{key: value for key, value in each.items() if key != "name"} for each in listed]


def _answer(value: Mapping[str, Any], tasks: Sequence[Task]) -> Answered | None:
    """Return the answer on a line, or None if the line is not one."""
    task, index, numbers, greedy = (value.get(key) for key in ("task", "index", "log_likelihoods", "greedy"))
    if not is_int_between(task, 0, len(tasks) - 1) or not is_int_between(index, 0, len(tasks[task].questions) - 1):
        return None
    options = len(tasks[task].questions[index].choices)
    for given, kind in ((numbers, float), (greedy, bool)):
        if not isinstance(given, list) or len(given) != options or not all(type(each) is kind for each in given):
            return None
    if not isinstance(numbers, list) or not isinstance(greedy, list) or not all(map(math.isfinite, numbers)):
        return None
    return Answered(task, index, Answer(tuple(numbers), tuple(greedy)))


class ResultFile:
    """A result that is written while the evaluation runs, line by line.

    Args:
        path: the file. An incomplete result of the same model, tasks and settings is continued.
        tasks: the tasks.
        header: first line, from `describe`.

    Attributes:
        answers: answers that the file had, by (task, index).
        complete: whether the file had figures.

    Raises:
        UsageError: the file belongs to something else, is damaged, in use or cannot be written.
    """

    def __init__(self, path: Path, tasks: Sequence[Task], header: Mapping[str, Any]) -> None:
        self._name, self._tasks = sanitise_name(str(path)), tasks
        self._descriptor = self._open(path)
        try:
            self.answers: dict[tuple[int, int], Answer] = {}
            self.complete = False
            size = self._continue(path, header) if os.fstat(self._descriptor).st_size else 0
            os.ftruncate(self._descriptor, size)
            os.lseek(self._descriptor, size, os.SEEK_SET)
            if not size:
                append_record(self._descriptor, header)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _open(self, path: Path) -> int:
        """Open and lock the file. Raises UsageError."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        except (OSError, ValueError) as error:
            raise UsageError(f"{self._name} cannot be written: {getattr(error, 'strerror', None) or error}") from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UsageError(f"{self._name} is not a regular file: give another file for the result")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UsageError(f"{self._name} is being written by another process: give another file") from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
        except UsageError:
            os.close(descriptor)
            raise
        return descriptor

    def _continue(self, path: Path, header: Mapping[str, Any]) -> int:
        """Read the answers that the file has; return the bytes that stay. Raises UsageError if it belongs elsewhere."""
        if b"\n" not in read_bounded(path, UsageError, MAX_RESULT_BYTES):  # Killed while the first line was written.
            return self._unstarted(path)
        stored = read_result(path, self._tasks)
        model = stored.header.get("model")
        fingerprint = model.get("fingerprint") if isinstance(model, dict) else None
        if fingerprint != header["model"]["fingerprint"]:
            raise UsageError(f"{self._name} belongs to another model: give another file, or remove it")
        if stored.header.get("settings") != header["settings"]:
            raise UsageError(f"{self._name} belongs to other settings: give another file, or remove it")
        self.answers, self.complete = stored.answers, stored.complete
        return stored.size

    def _unstarted(self, path: Path) -> int:
        """Return 0 if the file holds the beginning of a first line only. Raises UsageError for any other file."""
        begin = f'{{"{_KEY}"'.encode()
        data = read_bounded(path, UsageError, MAX_RESULT_BYTES)
        if data[: len(begin)] != begin[: len(data)]:
            raise UsageError(f"{self._name} is not a result of qwchat eval: give another file, or remove it")
        return 0

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def add(self, answered: Answered, prediction: int) -> None:
        """Append an answer. Raises OSError."""
        question = self._tasks[answered.task].questions[answered.index]
        record = {
            "task": answered.task,
            "index": answered.index,
            "line": question.line,
            "subject": question.subject,
            "answer": LETTERS[question.answer],
            "prediction": LETTERS[prediction],
            "log_likelihoods": answered.answer.log_likelihoods,
            "greedy": answered.answer.greedy,
        }
        append_record(self._descriptor, record)

    def finish(self, figures: Mapping[str, Any]) -> None:
        """Append the figures and wait until the file is on the disk, unless it had figures already. Raises OSError."""
        if not self.complete:
            append_record(self._descriptor, {"result": figures})
            os.fsync(self._descriptor)
