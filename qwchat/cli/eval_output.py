"""The figures of `qwchat eval` as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qwchat.cli.json_output import ModelInfo
from qwchat.cli.tables import Column, TableWriter

if TYPE_CHECKING:
    from qwchat.cli.eval_options import EvalOptions
    from qwchat.evaluation.choice_figures import Accuracy
    from qwchat.evaluation.choice_summary import Comparison, Summary
    from qwchat.evaluation.figures import Estimate
    from qwchat.evaluation.multiple_choice import Task

_COLUMNS = (
    Column("task", wrap=12),
    Column("questions", right=True, drop=2),
    Column("accuracy", right=True),
    Column("95 % interval", right=True, drop=4),
)
_NORMALISED = (Column("per character", right=True, drop=3), Column("per byte", right=True, drop=1))


def as_data(header: Mapping[str, Any], summary: Summary) -> dict[str, Any]:
    """Return the figures of an evaluation and what they belong to, for JSON.

    Args:
        header: description of the evaluation, from `qwchat.evaluation.result_file.describe`.
        summary: its figures.
    """
    tasks = [{**file, **asdict(figures)} for file, figures in zip(header["tasks"], summary.tasks, strict=True)]
    subjects = {name: asdict(figures) for name, figures in summary.subjects.items()}
    return {
        "settings": header["settings"],
        "tasks": tasks,
        **asdict(summary.overall),
        "macro": asdict(summary.macro),
        "subjects": subjects,
    }


def write_tables(
    writer: TableWriter,
    options: EvalOptions,
    info: ModelInfo,
    tasks: list[Task],
    summary: Summary,
    comparison: Comparison | None,
) -> None:
    """Print a row for each task, one for all questions, and the mean of the subjects."""
    examples = f"{options.shots:,} example{'' if options.shots == 1 else 's'} in each prompt"
    title = (
        f"{info.name}: {info.bits_per_weight:.2f} bits per weight, {summary.overall.questions:,} questions, "
        f"{examples}{', chat template' if options.chat else ''}"
    )
    normalised = any(figures.acc_norm is not None for figures in summary.tasks)
    rows = [_row(task.file.path.stem, figures, normalised) for task, figures in zip(tasks, summary.tasks, strict=True)]
    if len(tasks) > 1:
        rows.append(_row("all questions", summary.overall, normalised))
    if len(summary.subjects) > 1:
        blank = ["", ""] if normalised else []
        rows.append([f"mean of {len(summary.subjects):,} subjects", "", *_share(summary.macro), *blank])
    parts = [writer.paragraph(title), writer.table((*_COLUMNS, *(_NORMALISED if normalised else ())), rows)]
    if comparison is not None:
        parts.append(writer.pairs(_comparison_pairs(str(options.against), comparison)))
    writer.write(*parts)


def _row(name: str, figures: Accuracy, normalised: bool) -> list[str]:
    others = [figures.acc_norm, figures.acc_bytes] if normalised else []
    values = ["" if each is None else _share(each)[0] for each in others]
    return [name, f"{figures.questions:,}", *_share(figures.acc), *values]


def _share(estimate: Estimate) -> tuple[str, str]:
    interval = estimate.interval
    text = "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"
    return f"{100 * estimate.value:.1f} %", text


def _comparison_pairs(name: str, comparison: Comparison) -> list[tuple[str, str]]:
    difference = comparison.difference
    interval = difference.interval
    text = "" if interval is None else f" ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})"
    return [
        ("against", name),
        ("its accuracy", f"{100 * comparison.acc:.1f} %"),
        ("difference", f"{100 * difference.value:+.1f}{text} percentage points"),
    ]
