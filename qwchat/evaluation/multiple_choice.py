"""Answer files of multiple-choice questions: an option is chosen by its log-likelihood after the prompt."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quant.safe_files import is_regular_file
from quant.wording import Argument, ArgumentMessage
from qwchat.characters import sanitise_name
from qwchat.errors import PromptTooLongError, UsageError
from qwchat.evaluation.choice_figures import Answer
from qwchat.evaluation.choice_files import ChoiceQuestion, TaskFile, read_task
from qwchat.evaluation.choice_prompts import Prompts, shots_for
from qwchat.evaluation.likelihood import LikelihoodScorer

if TYPE_CHECKING:
    from qwchat.api import Model


@dataclass(frozen=True)
class Task:
    """A file of questions with the examples that their prompts begin with.

    Attributes:
        file: the file.
        questions: those of its questions that are asked.
        examples: file of the examples; None without shots.
        shots: examples in a prompt.
    """

    file: TaskFile
    questions: tuple[ChoiceQuestion, ...]
    examples: TaskFile | None
    shots: int

    def prompts(self, model: Model, subject: str, *, chat: bool) -> Prompts:
        """Return the prompts of a subject. Raises UsageError if there are not enough examples."""
        found: tuple[ChoiceQuestion, ...] = ()
        if self.examples is not None:
            found = shots_for(subject, self.examples.questions, self.shots)
            if len(found) < self.shots:
                about = f" about {sanitise_name(subject)}" if self.file.form == "jsonl" else ""
                raise UsageError(
                    ArgumentMessage(
                        f"{self.examples.name} has {len(found):,} examples{about}, fewer than ",
                        Argument("shots", self.shots),
                        ": add examples, or use fewer",
                    )
                )
        return Prompts(model, self.file.form, subject, found, chat)

    def by_subject(self) -> dict[str, list[int]]:
        """Return the indices of the questions of each subject, in the order of the file."""
        found: dict[str, list[int]] = {}
        for index, question in enumerate(self.questions):
            found.setdefault(question.subject, []).append(index)
        return found


def read_tasks(paths: Sequence[Path], shots: int, examples: Path | None, limit: int | None) -> list[Task]:
    """Read files of questions, each with its examples.

    Args:
        paths: files of questions.
        shots: examples in a prompt; 0 reads none.
        examples: file of the examples of all tasks, or folder with a file `SUBJECT_dev.csv` for each. None: that file
            in the folder `dev` beside the folder of the questions, as in MMLU, or in their own folder.
        limit: ask so many questions of each file, the first ones. None: all.

    Raises:
        UsageError: a file cannot be read or has another form, or there are no examples for it.
    """
    tasks = []
    for path in paths:
        file = read_task(path)
        shown = read_task(_examples_path(path, file, examples)) if shots else None
        if shown is not None and shown.form != file.form:
            raise UsageError(f"{shown.name} has another form than {file.name}: give examples in the same form")
        if shown is not None and shown.sha256 == file.sha256:
            raise UsageError(f"{shown.name} has the questions that are asked: give other examples")
        tasks.append(Task(file, file.questions[:limit], shown, shots))
    return tasks


def _examples_path(path: Path, file: TaskFile, examples: Path | None) -> Path:
    if examples is not None and not examples.is_dir():
        return examples
    name = f"{file.subject}_dev{path.suffix}"
    folders = [path.absolute().parent.parent / "dev", path.parent] if examples is None else [examples]
    found = next((folder / name for folder in folders if is_regular_file(folder / name)), None)
    if found is None:
        raise UsageError(
            ArgumentMessage(
                f"there is no {sanitise_name(name)} with examples for {file.name}: name it with ",
                Argument("shots_file"),
            )
        )
    return found


@dataclass(frozen=True)
class Answered:
    """An answer to the question `index` of the task `task`."""

    task: int
    index: int
    answer: Answer


def answer_all(
    model: Model, tasks: Sequence[Task], finished: Collection[tuple[int, int]] = (), *, chat: bool
) -> Iterator[Answered]:
    """Answer the questions of all tasks, subject by subject.

    The answer to a question does not depend, to the last bit, on which others are asked before.

    Args:
        model: the model.
        tasks: the tasks.
        finished: (task, index) of questions that are not asked again.
        chat: render prompts with the chat template.

    Raises:
        PromptTooLongError: a prompt does not fit in the context window; checked before the first answer.
        UsageError: there are not enough examples.
        TemplateError: the chat template fails.
    """
    groups = [
        (number, task, task.prompts(model, subject, chat=chat), indices)
        for number, task in enumerate(tasks)
        for subject, indices in task.by_subject().items()
    ]
    for _, task, prompts, indices in groups:
        for index in indices:
            if not prompts.fits(task.questions[index], model.context):
                _encode(prompts, task, index)
    for number, task, prompts, indices in groups:
        scorer = LikelihoodScorer(model, prompts.shared(task.questions[indices[0]]))
        for index in indices:
            if (number, index) not in finished:
                found = scorer.score(*_encode(prompts, task, index))
                answer = Answer(tuple(each.total for each in found), tuple(each.greedy for each in found))
                yield Answered(number, index, answer)


def _encode(prompts: Prompts, task: Task, index: int) -> tuple[list[int], list[list[int]]]:
    """Return the token ids of a prompt and of each option. Raises PromptTooLongError if they do not fit."""
    context, options = prompts.encode(task.questions[index])
    tokens, model = len(context) + max(map(len, options)) - 1, prompts.model
    where = f"{task.file.name}, line {task.questions[index].line:,}"
    if not all(options):
        raise UsageError(f"{where} has an option without a token of its own: reword the option")
    if tokens > model.context:
        raise PromptTooLongError(
            tokens,
            model.context,
            model.longest_context,
            f"{where}: question and examples have {tokens:,} tokens and the context holds {model.context:,}",
            "use fewer examples",
        )
    return context, options
