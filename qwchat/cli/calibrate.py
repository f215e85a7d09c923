"""`qwchat calibrate`: statistics of the inputs of a model's matrices, for `convert --calibration`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quant.machine import usable_processors
from qwchat import models_folder
from qwchat.characters import sanitise_name
from qwchat.chat.formatting import duration
from qwchat.chat.view.progress import byte_progress
from qwchat.cli.calibrate_options import CalibrateOptions
from qwchat.cli.calibration_text import file_documents, self_written_documents
from qwchat.cli.default_file import default_file
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.ensure_model import ensure_kernels, find_model
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.json_output import json_line
from qwchat.cli.streams import Streams
from qwchat.models_folder import LocatedModel
from qwchat.settings.resolve import resolve

if TYPE_CHECKING:
    from quant.calibration import StatisticsHeader, StatisticsWriter
    from quant.container import ModelFolder
    from quant.sources import Source
    from qwchat.calibration.folder_tensors import UnquantisedTensors
    from qwchat.calibration.windows_of_text import Ids

SUFFIX = ".statistics"


@dataclass(frozen=True)
class _Opened:
    """The unquantised model: its files, tensors, and the fingerprint of its checkpoint."""

    files: Source | ModelFolder
    tensors: UnquantisedTensors
    fingerprint: str


def run(options: CalibrateOptions, dependencies: Dependencies) -> int:
    """Write a statistics file. Its path goes to standard output, everything else to standard error."""
    from quant.calibration import StatisticsWriter

    options.check()
    streams = Streams(quiet=options.quiet)
    threads = options.threads or resolve()["threads"]
    located = find_model(options.model, streams)
    began = time.monotonic()
    with ExitStack() as stack:
        opened = _open(located, threads, stack)
        destination = (options.output or default_file(f"{models_folder.model_name(located.path)}{SUFFIX}")).resolve()
        writer = stack.enter_context(StatisticsWriter(destination))
        if not options.resume:
            writer.check_destination(options.force)
        try:
            header = _calibrate(options, located, opened, writer, dependencies, streams, threads)
        except KeyboardInterrupt:
            streams.screen.hint("finished layers are kept: run the same command with --resume to continue")
            raise
    seconds = time.monotonic() - began
    if options.json:
        streams.write(json_line(_as_data(destination, header, seconds)) + "\n")
    else:
        streams.screen.notice(f"calibrated with {header.samples:,} tokens in {duration(seconds)}")
        streams.write(f"{destination}\n")
    return ExitCode.OK


def _open(located: LocatedModel, threads: int | None, stack: ExitStack) -> _Opened:
    """Open a checkpoint, or an unquantised model folder. Raises ModelError for a quantised one."""
    if located.converted:
        from quant.container import open_model
        from qwchat.calibration.folder_tensors import FolderTensors

        folder = open_model(located.path)
        return _Opened(folder, FolderTensors(folder), folder.source_fingerprint)
    from quant.sources import check_tensors, open_source
    from qwchat.calibration.source_tensors import SourceTensors

    source = stack.enter_context(open_source(located.path))
    check_tensors(source)
    tensors = SourceTensors(source, threads or len(usable_processors()))
    return _Opened(source, tensors, source.fingerprint)


def _calibrate(
    options: CalibrateOptions,
    located: LocatedModel,
    opened: _Opened,
    writer: StatisticsWriter,
    dependencies: Dependencies,
    streams: Streams,
    threads: int | None,
) -> StatisticsHeader:
    from qwchat.calibration.collect import collect, statistics_header
    from qwchat.cpu.kernels.thread_counts import default_threads

    for notice in writer.open_folder(options.resume):
        streams.screen.notice(notice)
    pieces, text = _text(options, located, opened, writer, dependencies, streams)
    header = statistics_header(opened.tensors.config, opened.fingerprint, pieces, text)
    for notice in writer.begin(header):
        streams.screen.notice(notice)
    if writer.is_published():
        streams.screen.notice(f"{writer.destination} is already complete")
        return header
    writer.check_destination(options.force)
    ensure_kernels(dependencies, streams)
    events = collect(opened.tensors, pieces, writer, threads or default_threads())
    title = f"calibrating {sanitise_name(located.name)}"
    total = next(events).total
    with byte_progress(title, total, streams.screen, rewritable=streams.rewritable) as progress:
        for event in events:
            progress.update(event.done, title)
    writer.publish(options.force)
    return header


def _text(
    options: CalibrateOptions,
    located: LocatedModel,
    opened: _Opened,
    writer: StatisticsWriter,
    dependencies: Dependencies,
    streams: Streams,
) -> tuple[list[Ids], str]:
    """Return pieces of text as token ids, and where they come from."""
    from qwchat.calibration.windows_of_text import WINDOW, choose_windows

    window = min(WINDOW, opened.tensors.config.max_position_embeddings)
    if options.files:
        documents = file_documents(opened.files, options.files, chat=options.chat)
        where = f"{len(options.files)} file{'s' if len(options.files) > 1 else ''}"
    else:
        documents = self_written_documents(
            located,
            opened.files,
            options.tokens,
            options.seed,
            writer.partial,
            dependencies,
            streams,
            options.threads,
        )
        where = f"written by the model, seed {options.seed}"
    pieces = choose_windows(documents, options.tokens, window)
    found = sum(map(len, pieces))
    if found < options.tokens:
        streams.screen.notice(f"the text has only {found:,} of {options.tokens:,} tokens: more text is better")
    return pieces, where


def _as_data(path: Path, header: StatisticsHeader, seconds: float) -> dict[str, object]:
    return {
        "path": str(path),
        "model": header.model,
        "tokens": header.samples,
        "text": header.text,
        "inputs": len(header.columns),
        "bytes": path.stat().st_size,
        "seconds": round(seconds, 3),
    }
