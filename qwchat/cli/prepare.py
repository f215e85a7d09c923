"""From MODEL, as a person gives it, to a folder that can be opened; a checkpoint is converted on its first use."""

from __future__ import annotations

import time
from pathlib import Path

from qwchat import models_folder
from qwchat.cli.services import Services
from qwchat.cli.setup import Setup
from qwchat.cli.streams import Streams
from qwchat.errors import QwchatError
from qwchat.models_folder import Located

_POLL_SECONDS = 0.1


def prepare(model: str | None, services: Services, streams: Streams, threads: int | None = None) -> Located:
    """Return the model that `model` names, converted, with the kernels compiled.

    A checkpoint's conversion is kept in the models folder and made again, with a notice, where the checkpoint has
    changed since. Processes that want the same conversion or the kernels at the same time wait for one another.

    Raises:
        ModelError: there is no such model.
        QwchatError: the models folder cannot be written.
    """
    found = models_folder.locate(chosen(model))
    if services.compiled():
        return _converted(found, streams, threads, None)
    if trouble := services.cache_trouble():
        streams.screen.notice(trouble)
    with Setup(streams, "kernels", services.kernels_cost()) as setup:
        located = _converted(found, streams, threads, setup)
        setup.expect_no_conversion()
        services.compile(lambda name, cost: setup.compiling(name.replace("_", " "), cost), setup.wait)
    return located


def _converted(found: Located, streams: Streams, threads: int | None, setup: Setup | None) -> Located:
    """Return the model of a checkpoint, which is converted unless its conversion is there and fits."""
    if found.converted:
        return found
    from quant.sources import open_source

    with open_source(found.path) as source:
        fingerprint = source.fingerprint
    if _reason_to_convert(found, fingerprint) is not None:
        _make_folder(found.destination.parent)
        _convert_or_wait(found, fingerprint, streams, threads, setup)
    return Located(found.destination.name, found.destination, converted=True, embedded=found.embedded)


def chosen(model: str | None) -> str:
    """MODEL as it was given, or the one that variables and files name, or the embedded one. Raises UsageError."""
    if model is not None:
        return model
    from qwchat.settings.resolve import resolve

    return str(resolve()["model"])


def _reason_to_convert(found: Located, fingerprint: str) -> str | None:
    """Why the checkpoint is to be converted, as a sentence; None where its conversion is there and fits."""
    if not models_folder.is_model(found.destination):
        return f"{found.name} is converted once"
    from quant.container import open_model
    from quant.errors import ContainerError

    try:
        model = open_model(found.destination)
    except ContainerError:
        return f"the conversion of {found.name} is damaged and is made again"
    return None if model.source_fingerprint == fingerprint else f"{found.name} has changed and is converted again"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QwchatError(
            f"cannot make the models folder {folder}: {error.strerror}; set QWCHAT_MODELS to another folder"
        ) from error


def _convert_or_wait(
    found: Located, fingerprint: str, streams: Streams, threads: int | None, setup: Setup | None
) -> None:
    """Convert, unless another process does: then wait until it is done or gone."""
    from quant.errors import DestinationBusyError
    from quant.writer import wait_for_others

    waiting = False
    while (reason := _reason_to_convert(found, fingerprint)) is not None:
        try:
            _convert(found, reason, streams, threads, setup)
        except DestinationBusyError:
            if not waiting:
                streams.screen.notice(f"another qwchat is converting {found.name}: waiting for it")
            waiting = True
            wait_for_others(found.destination)
            time.sleep(_POLL_SECONDS)


def _convert(found: Located, reason: str, streams: Streams, threads: int | None, setup: Setup | None) -> None:
    """Convert once, from where an earlier attempt stopped if that fits."""
    from quant import convert
    from quant.errors import DestinationBusyError, UsageError
    from qwchat.cli.following import follow

    again = models_folder.is_model(found.destination)
    streams.screen.notice(f"{reason}, into {found.destination}")
    for resume in (True, False):
        events = convert(found.path, found.destination, resume=resume, force=again, threads=threads)
        try:
            follow(events, f"converting {found.name}", streams, show_notices=False, setup=setup)
            return
        except DestinationBusyError:
            raise
        except UsageError:
            if not resume:  # What was left belongs to another version of the checkpoint: begin anew.
                raise
