"""The command `qwchat export`: write a model in the format of another program."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from quant.units import data_size
from quant.wording import spell_out
from qwchat import models_folder
from qwchat.chat.formatting import duration
from qwchat.chat.view.progress import ByteProgress, byte_progress
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.error_messages import as_flag
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.json_output import json_line
from qwchat.cli.model_options import ExportOptions
from qwchat.cli.streams import Streams
from qwchat.cli.tables import Column, TableWriter
from qwchat.errors import UsageError
from qwchat.settings.resolve import resolve

if TYPE_CHECKING:
    from quant.exporters.export_events import ExportEvent, ExportFinished, ExportPlanned

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_PLAN_COLUMNS = (
    Column("format", style="bold"),
    Column("becomes", wrap=16),
    Column("tensors", right=True),
    Column("size", right=True),
)


@dataclass
class _Export:
    """The plan of an export, its end (None for a dry run) and its notices."""

    planned: ExportPlanned
    finished: ExportFinished | None = None
    notices: list[str] = field(default_factory=list)


def run(options: ExportOptions, dependencies: Dependencies) -> int:
    """Export, or show the plan. The folder's path goes to standard output, everything else to standard error."""
    from quant.exporters import export

    streams = Streams(quiet=options.quiet)
    model = _model_folder(options, streams)
    if options.to == "gguf" and options.destination.suffix.lower() == ".gguf":
        raise UsageError(
            f"{options.destination} is to be a folder: leave .gguf out; the file in it is named after the model"
        )
    events = export(
        model,
        options.destination,
        options.to,
        dtype=options.dtype,
        bits=options.bits,
        shard_bytes=parse_size(options.shard_size),
        resume=options.resume,
        dry_run=options.dry_run,
        force=options.force,
        threads=options.threads or resolve()["threads"],
    )
    try:
        done = _run_export(events, f"exporting {models_folder.model_name(model)}", streams)
    except KeyboardInterrupt:
        streams.screen.hint("finished files are kept: run the same command with --resume to continue")
        raise
    _report(done, options, streams)
    return ExitCode.OK


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `5GB` or `500M`. Raises UsageError for another text."""
    number = text.strip().upper().removesuffix("B")
    unit = number[-1:] if number[-1:] in _UNITS else ""
    digits = number.removesuffix(unit).strip() if unit else number
    try:
        size = float(digits) * _UNITS[unit]
        if not 1 <= size < 10**18:
            raise ValueError
    except ValueError:
        raise UsageError(f"--shard-size is {text!r}: give a size such as 5GB or 500MB") from None
    return int(size)


def _model_folder(options: ExportOptions, streams: Streams) -> Path:
    """Return the folder of the model or of its conversion. Raises UsageError if it is not converted."""
    located = models_folder.locate(options.model)
    if located.converted:
        return located.path
    if not models_folder.is_model(located.destination):
        raise UsageError(
            f"{located.path} is not converted: run {shlex.join(['qwchat', 'convert', str(located.path)])}, "
            "then export the converted model"
        )
    streams.screen.notice(f"{located.name} is not converted: exporting its conversion, {located.destination}")
    return located.destination


def _run_export(events: Generator[ExportEvent, None, None], title: str, streams: Streams) -> _Export:
    """Run an export to its end, with progress. An error or Ctrl-C closes `events`, which keeps finished files."""
    from quant.exporters.export_events import ExportAdvanced, ExportFinished, ExportNotice, ExportPlanned

    done: _Export | None = None
    with closing(events), ExitStack() as stack:
        progress: ByteProgress | None = None
        for event in events:
            if isinstance(event, ExportPlanned):
                done = _Export(event)
                continue
            assert done is not None, "the plan is the first event"
            if isinstance(event, ExportNotice):
                done.notices.append(event.text)
                streams.screen.notice(event.text)
            elif isinstance(event, ExportAdvanced):
                if progress is None:
                    total = done.planned.total_bytes_in
                    bar = byte_progress(title, total, streams.screen, rewritable=streams.rewritable)
                    progress = stack.enter_context(bar)
                progress.update(event.bytes_done, event.name)
            elif isinstance(event, ExportFinished):
                done.finished = event
    assert done is not None, "the plan is the first event"
    return done


def _report(done: _Export, options: ExportOptions, streams: Streams) -> None:
    planned, finished = done.planned, done.finished
    if options.json:
        streams.write(json_line(_as_data(done, options)) + "\n")
    elif finished is None:
        tables = TableWriter(streams)
        total = (
            f"{data_size(planned.total_bytes_in)} would become {data_size(planned.total_bytes_out)} "
            f"({planned.total_bytes_out:,} bytes) in {_counted(len(planned.files), 'weight file')} "
            f"in {options.destination.resolve()}"
        )
        rows = [
            (kind, target, str(len(names)), data_size(size))
            for (kind, target), (names, size) in _kinds(planned).items()
        ]
        tables.write(tables.paragraph(total), tables.table(_PLAN_COLUMNS, rows))
    else:
        for (kind, target), (names, _) in _kinds(planned).items():
            worst = max(finished.errors[name] for name in names)
            state = f"relative error up to {worst:.2g}" if worst else "unchanged"
            streams.screen.notice(f"{kind} as {target}: {_counted(len(names), 'tensor')}, {state}")
        streams.screen.notice(
            f"exported {data_size(planned.total_bytes_in)} to {data_size(planned.total_bytes_out)} "
            f"in {_counted(len(planned.files), 'weight file')}, in {duration(finished.seconds)}"
        )
        streams.write(f"{finished.path}\n")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _kinds(planned: ExportPlanned) -> dict[tuple[str, str], tuple[list[str], int]]:
    """Return the names and the exported bytes of the tensors by their format and what it becomes."""
    names: dict[tuple[str, str], list[str]] = defaultdict(list)
    sizes: dict[tuple[str, str], int] = defaultdict(int)
    for tensor in planned.tensors:
        names[tensor.format, tensor.target].append(tensor.name)
        sizes[tensor.format, tensor.target] += tensor.nbytes
    return {kind: (members, sizes[kind]) for kind, members in names.items()}


def _as_data(done: _Export, options: ExportOptions) -> dict[str, object]:
    planned, finished = done.planned, done.finished
    return {
        "path": str(options.destination.resolve()),
        "kind": options.to,
        "dry_run": finished is None,
        "bytes_in": planned.total_bytes_in,
        "bytes_out": planned.total_bytes_out,
        "seconds": None if finished is None else round(finished.seconds, 3),
        "notices": [spell_out(notice, as_flag) for notice in done.notices],
        "files": [
            {"name": name, "bytes": size, "sha256": None if finished is None else finished.checksums[name]}
            for name, size in planned.files.items()
        ],
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "format": tensor.format,
                "type": tensor.target,
                "bytes": tensor.nbytes,
                "relative_error": None if finished is None else finished.errors[tensor.name],
            }
            for tensor in planned.tensors
        ],
    }
