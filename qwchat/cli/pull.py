"""`qwchat pull`: download and convert a model of a hub, or list the catalogue."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from quant.presets import DEFAULT_PRESET
from quant.units import data_size
from qwchat import models_folder
from qwchat.chat.formatting import duration
from qwchat.chat.view.progress import ByteProgress, byte_progress
from qwchat.cli.conversion_memory import check_conversion_memory
from qwchat.cli.convert_progress import ConversionResult, run_conversion
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.json_output import json_line
from qwchat.cli.model_options import PullOptions
from qwchat.cli.streams import Streams
from qwchat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quant.conversion import ConversionEvent
    from qwchat.store.model_pull import Pull


def run(options: PullOptions, dependencies: Dependencies) -> int:
    """Pull a model and write the path of its folder to standard output; without a name, list the catalogue."""
    streams = Streams(quiet=options.quiet)
    if options.name is None:
        from qwchat.cli.catalogue_table import write_catalogue

        write_catalogue(streams, as_json=options.json)
        return ExitCode.OK
    began = time.monotonic()
    pull, conversion = pull_model(
        options.name,
        options.preset,
        streams,
        pattern=options.file,
        alias=options.alias,
        keep_checkpoint=options.keep_checkpoint,
        threads=options.threads,
    )
    _report(pull, conversion, time.monotonic() - began, options, streams)
    return ExitCode.OK


def pull_model(
    name: str,
    preset: str | None,
    streams: Streams,
    *,
    pattern: str | None = None,
    alias: str | None = None,
    keep_checkpoint: bool = False,
    threads: int | None = None,
) -> tuple[Pull, ConversionResult]:
    """Pull a model with progress on standard error.

    Args:
        name: name from the catalogue, or OWNER/NAME[@REVISION].
        preset: formats of the tensors; None for the default of the kind of weights.
        streams: where progress is shown.
        pattern: shell pattern for the files of one GGUF model; None for a checkpoint.
        alias: name of the model folder; by default made from `name` and `preset`.
        keep_checkpoint: keep the downloaded files as well.
        threads: quantising threads.

    Raises:
        UsageError: a name is invalid, or the folder exists.
        QwchatError, QuantError: as `qwchat.store.model_pull.Pull.events`.
    """
    from qwchat.store.catalogue import resolve_repository
    from qwchat.store.hub import find_repository
    from qwchat.store.hub_preview import preview
    from qwchat.store.model_pull import Pull

    repository_name, revision, base = resolve_repository(name)
    if alias is not None:
        _free_destination(alias)
    elif pattern is None:
        _free_destination(f"{base}-{preset or DEFAULT_PRESET}")  # Before the hub is asked, which may be offline.
    streams.screen.hint(f"looking up {repository_name}")
    repository = find_repository(repository_name, revision, pattern)
    found = preview(repository, preset)
    if repository.is_gguf:
        base = models_folder.gguf_name(repository.weight_files[0].local_name)
    destination = _free_destination(f"{base}-{found.preset}" if alias is None else alias)
    pull = Pull(repository, destination, found, keep_checkpoint=keep_checkpoint, threads=threads)
    try:
        check = partial(check_conversion_memory, threads=threads)
        title = f"{'converting' if pull.downloads_first else 'pulling'} {destination.name}"
        return pull, run_conversion(_with_download(pull, streams), title, streams, check=check)
    except KeyboardInterrupt:
        streams.screen.hint("what is done is kept: the same command resumes it")
        raise


def _free_destination(name: str) -> Path:
    """Return the model folder of that name. Raises UsageError if it is not a folder name, or the folder exists."""
    from qwchat.store.model_pull import remove_leftovers

    if not name or name.startswith(".") or not name.isprintable() or set(name) & set("/\\"):
        raise UsageError(f"{name[:200]!r} is not a folder name: give one without slashes that begins with no dot")
    destination = models_folder.models_folder() / name
    if destination.exists():
        remove_leftovers(destination)
        raise UsageError(f"{destination} exists already: choose another name, or remove it first")
    return destination


def _with_download(pull: Pull, streams: Streams) -> Iterator[ConversionEvent]:
    """Yield the events of the conversion, and show the progress of a download that comes before it.

    The progress of a conversion during the download is the mean of the bytes downloaded and converted.
    """
    from quant.conversion import ConversionAdvanced
    from qwchat.store.model_pull import DownloadAdvanced

    with closing(pull.events()) as events, ExitStack() as stack:
        progress: ByteProgress | None = None
        for event in events:
            if isinstance(event, DownloadAdvanced):
                if progress is None:
                    title, total = f"downloading {pull.destination.name}", event.total_bytes
                    bar = byte_progress(title, total, streams.screen, rewritable=streams.rewritable)
                    progress = stack.enter_context(bar)
                progress.update(event.bytes_done, "")
                continue
            stack.close()
            if isinstance(event, ConversionAdvanced) and not pull.downloads_first:
                yield ConversionAdvanced((event.bytes_done + max(pull.fetched_bytes, event.bytes_done)) // 2)
            else:
                yield event


def _report(pull: Pull, conversion: ConversionResult, seconds: float, options: PullOptions, streams: Streams) -> None:
    planned, finished = conversion.planned, conversion.finished
    assert finished is not None, "a pull ends with a model"
    if options.json:
        data = {
            "path": str(finished.path),
            "repository": pull.repository.name,
            "revision": pull.repository.revision,
            "licence": pull.repository.licence,
            "files": [file.name for file in pull.repository.weight_files],
            "preset": planned.preset,
            "bytes_in": planned.total_bytes_in,
            "bytes_out": planned.total_bytes_out,
            "bits_per_weight": planned.bits_per_weight,
            "seconds": round(seconds, 3),
            "checkpoint": str(pull.checkpoint) if options.keep_checkpoint else None,
        }
        streams.write(json_line(data) + "\n")
        return
    licence = f", licence {pull.repository.licence}" if pull.repository.licence else ""
    streams.screen.notice(
        f"pulled {pull.repository.name}@{pull.repository.revision[:12]}{licence}: {data_size(planned.total_bytes_in)} "
        f"became {data_size(planned.total_bytes_out)} in {duration(seconds)}"
    )
    streams.screen.hint(f"talk to it: qwchat -m {finished.path.name}")
    streams.write(f"{finished.path}\n")
