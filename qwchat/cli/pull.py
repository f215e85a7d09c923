"""`qwchat pull`: download and convert a model of a hub, or list the catalogue."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from quant.presets import DEFAULT_PRESET
from quant.units import data_size
from qwchat import models_folder
from qwchat.chat.formatting import duration
from qwchat.cli.conversion_memory import check_conversion_memory
from qwchat.cli.convert_progress import ConversionResult, run_conversion
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.json_output import json_line
from qwchat.cli.options import PullOptions
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
        options.preset or DEFAULT_PRESET,
        streams,
        alias=options.alias,
        keep_checkpoint=options.keep_checkpoint,
        threads=options.threads,
    )
    _report(pull, conversion, time.monotonic() - began, options, streams)
    return ExitCode.OK


def pull_model(
    name: str,
    preset: str,
    streams: Streams,
    *,
    alias: str | None = None,
    keep_checkpoint: bool = False,
    threads: int | None = None,
) -> tuple[Pull, ConversionResult]:
    """Pull a model with progress on standard error.

    Args:
        name: name from the catalogue, or OWNER/NAME[@REVISION].
        preset: formats of the tensors.
        streams: where progress is shown.
        alias: name of the model folder; by default made from `name` and `preset`.
        keep_checkpoint: keep the downloaded files as well.
        threads: quantising threads.

    Raises:
        UsageError: a name is invalid, or the folder exists.
        QwchatError, QuantError: as `qwchat.store.model_pull.Pull.events`.
    """
    from qwchat.store.catalogue import resolve_repository
    from qwchat.store.hub import find_repository
    from qwchat.store.model_pull import Pull, remove_leftovers

    repository_name, revision, base = resolve_repository(name)
    folder = f"{base}-{preset}" if alias is None else alias
    if not folder or folder.startswith(".") or not folder.isprintable() or set(folder) & set("/\\"):
        raise UsageError(f"{folder[:200]!r} is not a folder name: give one without slashes that begins with no dot")
    destination = models_folder.models_folder() / folder
    if destination.exists():
        remove_leftovers(destination)
        raise UsageError(f"{destination} exists already: choose another name, or remove it first")
    streams.screen.hint(f"looking up {repository_name}")
    repository = find_repository(repository_name, revision)
    pull = Pull(repository, destination, preset, keep_checkpoint=keep_checkpoint, threads=threads)
    try:
        check = partial(check_conversion_memory, threads=threads)
        return pull, run_conversion(_with_download(pull), f"pulling {folder}", streams, check=check)
    except KeyboardInterrupt:
        streams.screen.hint("what is done is kept: the same command resumes it")
        raise


def _with_download(pull: Pull) -> Iterator[ConversionEvent]:
    """Yield the events of a pull, whose progress is the mean of the bytes downloaded and converted."""
    from quant.conversion import ConversionAdvanced

    events = pull.events()
    try:
        for event in events:
            if isinstance(event, ConversionAdvanced):
                yield ConversionAdvanced((event.bytes_done + max(pull.fetched_bytes, event.bytes_done)) // 2)
            else:
                yield event
    finally:
        events.close()


def _report(pull: Pull, conversion: ConversionResult, seconds: float, options: PullOptions, streams: Streams) -> None:
    planned, finished = conversion.planned, conversion.finished
    assert finished is not None, "a pull ends with a model"
    if options.json:
        data = {
            "path": str(finished.path),
            "repository": pull.repository.name,
            "revision": pull.repository.revision,
            "licence": pull.repository.licence,
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
