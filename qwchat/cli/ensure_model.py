"""Find the requested model, and convert a checkpoint on its first use."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from qwchat import models_folder
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.setup_progress import SetupProgress
from qwchat.cli.streams import Streams
from qwchat.errors import ModelError, QwchatError
from qwchat.models_folder import LocatedModel

_POLL_SECONDS = 0.1


def ensure_model(
    model: str | None,
    dependencies: Dependencies,
    streams: Streams,
    threads: int | None = None,
    *,
    may_pull: bool = True,
) -> LocatedModel:
    """Return the model that `model` names, converted, with compiled kernels.

    The conversion of a checkpoint is kept in the models folder, and repeated with a notice if the checkpoint has
    changed. Processes that need the same conversion or the kernels at the same time wait for each other. With
    `may_pull`, a terminal is asked whether to pull a model of the catalogue that is not here.

    Raises:
        ModelError: there is no such model.
        QwchatError: the models folder is not writable.
    """
    name = requested_model(model)
    located = _locate(name, streams) if may_pull else models_folder.locate(name)
    if dependencies.compiled():
        return _ensure_converted(located, streams, threads, None)
    if problem := dependencies.cache_problem():
        streams.screen.notice(problem)
    with SetupProgress(streams, "kernels", dependencies.kernel_compile_cost()) as setup:
        converted = _ensure_converted(located, streams, threads, setup)
        setup.expect_no_conversion()
        dependencies.compile(lambda name, cost: setup.compiling(name.replace("_", " "), cost), setup.wait)
    return converted


def _locate(name: str, streams: Streams) -> LocatedModel:
    """Return the model of that name, after offering to pull one of the catalogue. Raises ModelError."""
    try:
        return models_folder.locate(name)
    except ModelError:
        from qwchat.cli.pull_offer import offer_to_pull

        if not offer_to_pull(name, streams):
            raise
    return models_folder.locate(name)


def _ensure_converted(
    located: LocatedModel, streams: Streams, threads: int | None, setup: SetupProgress | None
) -> LocatedModel:
    """Return the converted model of a checkpoint, after converting it if necessary."""
    if located.converted:
        return located
    from quant.sources import open_source

    with open_source(located.path) as source:
        fingerprint = source.fingerprint
    if _reason_to_convert(located, fingerprint) is not None:
        _make_folder(located.destination.parent)
        _convert_or_wait(located, fingerprint, streams, threads, setup)
    return LocatedModel(located.destination.name, located.destination, converted=True, embedded=located.embedded)


def requested_model(model: str | None) -> str:
    """Return `model`, or the model that the settings name. Raises UsageError."""
    if model is not None:
        return model
    from qwchat.settings.resolve import resolve

    return str(resolve()["model"])


def _reason_to_convert(located: LocatedModel, fingerprint: str) -> str | None:
    """Return why the checkpoint must be converted, as a sentence; None if its conversion is current."""
    if not models_folder.is_model(located.destination):
        return "first use"
    from quant.container import open_model
    from quant.errors import ContainerError

    try:
        model = open_model(located.destination)
    except ContainerError:
        return "its conversion is damaged"
    return None if model.source_fingerprint == fingerprint else "the checkpoint has changed"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QwchatError(
            f"cannot create the models folder {folder} ({error.strerror}): set QWCHAT_MODELS to another folder"
        ) from error


def _convert_or_wait(
    located: LocatedModel, fingerprint: str, streams: Streams, threads: int | None, setup: SetupProgress | None
) -> None:
    """Convert the checkpoint, or wait for another process that converts it."""
    from quant.destination import wait_for_conversion
    from quant.errors import DestinationBusyError

    waiting = False
    while (reason := _reason_to_convert(located, fingerprint)) is not None:
        try:
            _convert(located, reason, streams, threads, setup)
        except DestinationBusyError:
            if not waiting:
                streams.screen.notice(f"another qwchat is converting {located.name}: waiting for it")
            waiting = True
            wait_for_conversion(located.destination)
            time.sleep(_POLL_SECONDS)


def _convert(
    located: LocatedModel, reason: str, streams: Streams, threads: int | None, setup: SetupProgress | None
) -> None:
    """Convert the checkpoint, continuing an interrupted conversion if it matches."""
    from quant import convert
    from quant.errors import ArgumentError, DestinationBusyError
    from qwchat.cli.conversion_memory import check_conversion_memory
    from qwchat.cli.convert_progress import run_conversion

    check = partial(check_conversion_memory, threads=threads)
    again = models_folder.is_model(located.destination)
    streams.screen.notice(f"converting {located.name} into {located.destination} ({reason})")
    for resume in (True, False):
        events = convert(located.path, located.destination, resume=resume, force=again, threads=threads)
        try:
            title = f"converting {located.name}"
            run_conversion(events, title, streams, check=check, show_notices=False, setup=setup)
            return
        except DestinationBusyError:
            raise
        except ArgumentError:
            if not resume:  # The interrupted conversion does not match: start again.
                raise
