"""`qwchat eval`: accuracy of a model on files of multiple-choice questions."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwchat.characters import sanitise_name
from qwchat.chat.view.progress import byte_progress
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.ensure_model import ensure_model
from qwchat.cli.eval_options import EvalOptions
from qwchat.cli.eval_output import as_data, write_tables
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.integrity_check import wait_until_checked, with_repair_command
from qwchat.cli.json_output import ModelInfo, json_line
from qwchat.cli.startup import load_located
from qwchat.cli.streams import Streams
from qwchat.cli.tables import TableWriter
from qwchat.errors import UsageError
from qwchat.settings.resolve import resolve

if TYPE_CHECKING:
    from qwchat.api import Model
    from qwchat.evaluation.choice_figures import Answer
    from qwchat.evaluation.multiple_choice import Task
    from qwchat.evaluation.result_file import ResultFile, StoredResult

_TITLE = "answering"


def run(options: EvalOptions, dependencies: Dependencies) -> int:
    """Evaluate a model, and print its accuracy or one JSON object to standard output."""
    from qwchat.evaluation.choice_summary import compare, summarise
    from qwchat.evaluation.multiple_choice import read_tasks
    from qwchat.evaluation.result_file import ResultFile, describe

    options.check()
    streams = Streams(quiet=options.quiet)
    tasks = read_tasks([Path(name) for name in options.tasks], options.shots, options.shots_file, options.limit)
    other = _read_other(options, tasks)
    settings = resolve(options.engine_flags())
    located = ensure_model(options.model, dependencies, streams, settings["threads"])
    with ExitStack() as stack:
        model = stack.enter_context(load_located(located, settings, dependencies, streams))
        info = ModelInfo.of(located, model)
        header = describe(tasks, model.folder.fingerprint, _settings(options, model), info.name)
        file = None if options.output is None else stack.enter_context(ResultFile(options.output, tasks, header))
        if file is not None:
            _check(model, streams)  # A damaged model has the fingerprint of the intact one, so its answers would stay.
        answers = _answer(model, tasks, file, options, streams)
        _check(model, streams)
        summary = summarise(tasks, answers)
        comparison = None if other is None else compare(tasks, answers, other.answers)
        data = as_data(header, summary)
        if file is not None:
            file.finish(data)
    if options.json:
        streams.write(json_line(_whole(options, info, data, other, comparison)) + "\n")
    else:
        write_tables(TableWriter(streams), options, info, tasks, summary, comparison)
    return ExitCode.OK


def _check(model: Model, streams: Streams) -> None:
    """Wait for the check of the model's files. Raises DamagedModelError with the command that repairs the model."""
    with with_repair_command(model.folder):
        wait_until_checked(model, streams)


def _read_other(options: EvalOptions, tasks: list[Task]) -> StoredResult | None:
    """Return the result to compare with. Raises UsageError if it is incomplete or belongs to other tasks."""
    from qwchat.evaluation.result_file import read_result

    if options.against is None:
        return None
    other = read_result(options.against, tasks)
    if not other.complete:
        raise UsageError(f"{sanitise_name(str(options.against))} is incomplete: finish that evaluation first")
    return other


def _settings(options: EvalOptions, model: Model) -> dict[str, object]:
    """Return the settings that the answers depend on; the template is given by its hash."""
    template = hashlib.sha256(model.template.source.encode()).hexdigest() if options.chat else None
    return {
        "shots": options.shots,
        "limit": options.limit,
        "chat": options.chat,
        "template": template,
        "kv": model.kv,
        "activations": model.activations,
        "device": model.device.partition(":")[0],
    }


def _answer(
    model: Model, tasks: list[Task], file: ResultFile | None, options: EvalOptions, streams: Streams
) -> dict[tuple[int, int], Answer]:
    """Answer all questions with progress on standard error; those in the result file are not asked again."""
    from qwchat.evaluation.choice_figures import predict
    from qwchat.evaluation.multiple_choice import answer_all

    answers = {} if file is None else dict(file.answers)
    sizes = {
        (number, index): sum(map(len, (question.text, *question.choices)))
        for number, task in enumerate(tasks)
        for index, question in enumerate(task.questions)
    }
    if answers and len(answers) < len(sizes):
        streams.screen.notice(f"{len(answers):,} of {len(sizes):,} questions were answered before: continuing")
    done = sum(sizes[key] for key in answers)
    with byte_progress(_TITLE, sum(sizes.values()), streams.screen, rewritable=streams.rewritable) as progress:
        progress.update(done, _TITLE)
        for answered in answer_all(model, tasks, answers.keys(), chat=options.chat):
            key = answered.task, answered.index
            answers[key] = answered.answer
            if file is not None:
                file.add(answered, predict(answered.answer, [1] * len(answered.answer.log_likelihoods)))
            done += sizes[key]
            progress.update(done, _TITLE)
    return answers


def _whole(
    options: EvalOptions, info: ModelInfo, data: dict[str, Any], other: StoredResult | None, comparison: object
) -> dict[str, object]:
    from dataclasses import asdict, is_dataclass

    against = None
    if other is not None and is_dataclass(comparison) and not isinstance(comparison, type):
        against = {"model": other.header.get("model"), **asdict(comparison)}
    return {
        "model": asdict(info),
        **data,
        "output": None if options.output is None else str(options.output),
        "against": against,
    }
