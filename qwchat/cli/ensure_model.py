"""Find the requested model, and convert a checkpoint or a GGUF file on its first use."""

from __future__ import annotations

import time
from dataclasses import dataclass
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

    The conversion of a checkpoint or a GGUF file is kept in the models folder, and repeated with a notice if its source
    has changed. Processes that need the same conversion or the kernels at the same time wait for each other. With
    `may_pull`, a terminal is asked whether to pull a model of the catalogue that is not here.

    Raises:
        ModelError: there is no such model.
        QwchatError: the models folder is not writable.
    """
    located = find_model(model, streams) if may_pull else models_folder.locate(requested_model(model))
    if dependencies.compiled():
        return _ensure_converted(located, streams, threads, None)
    with _kernel_setup(dependencies, streams) as setup:
        converted = _ensure_converted(located, streams, threads, setup)
        _compile(dependencies, setup)
    return converted


def compile_kernels(dependencies: Dependencies, streams: Streams) -> None:
    """Compile the kernels, with progress, unless that was done before."""
    if not dependencies.compiled():
        with _kernel_setup(dependencies, streams) as setup:
            _compile(dependencies, setup)


def _kernel_setup(dependencies: Dependencies, streams: Streams) -> SetupProgress:
    if problem := dependencies.cache_problem():
        streams.screen.notice(problem)
    return SetupProgress(streams, "kernels", dependencies.kernel_compile_cost())


def _compile(dependencies: Dependencies, setup: SetupProgress) -> None:
    setup.expect_no_conversion()
    dependencies.compile(lambda name, cost: setup.compiling(name.replace("_", " "), cost), setup.wait)


def ensure_kernels(dependencies: Dependencies, streams: Streams) -> None:
    """Compile the kernels, with progress, if the cache does not have them."""
    if dependencies.compiled():
        return
    if problem := dependencies.cache_problem():
        streams.screen.notice(problem)
    with SetupProgress(streams, "kernels", dependencies.kernel_compile_cost()) as setup:
        setup.expect_no_conversion()
        dependencies.compile(lambda name, cost: setup.compiling(name.replace("_", " "), cost), setup.wait)


def find_model(model: str | None, streams: Streams) -> LocatedModel:
    """Return the model that `model` names, after offering to pull one of the catalogue. Raises ModelError."""
    name = requested_model(model)
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
    """Return the conversion of a model, after converting it if necessary."""
    if located.converted:
        return located
    from quant.sources import open_source

    with open_source(located.path) as source:
        fingerprint, destination = source.fingerprint, located.conversion_folder(quantised=source.quantised)
    conversion = _Conversion(located, destination, fingerprint)
    if conversion.reason is not None:
        _make_folder(destination.parent)
        _convert_or_wait(conversion, streams, threads, setup)
    return LocatedModel(destination.name, destination, converted=True, embedded=located.embedded)


def requested_model(model: str | None) -> str:
    """Return `model`, or the model that the settings name. Raises UsageError."""
    if model is not None:
        return model
    from qwchat.settings.resolve import resolve

    return str(resolve()["model"])


@dataclass(frozen=True)
class _Conversion:
    """Conversion of a model on its first use: from where, to where, and the fingerprint that it must have."""

    located: LocatedModel
    destination: Path
    fingerprint: str

    @property
    def reason(self) -> str | None:
        """Why the model must be converted, as a phrase; None if its conversion is current."""
        if not models_folder.is_model(self.destination):
            return "first use"
        from quant.container import open_model
        from quant.errors import ContainerError

        try:
            model = open_model(self.destination)
        except ContainerError:
            return "its conversion is damaged"
        return None if model.source_fingerprint == self.fingerprint else f"the {self.located.kind} has changed"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QwchatError(
            f"cannot create the models folder {folder} ({error.strerror}): set QWCHAT_MODELS to another folder"
        ) from error


def _convert_or_wait(
    conversion: _Conversion, streams: Streams, threads: int | None, setup: SetupProgress | None
) -> None:
    """Convert the model, or wait for another process that converts it."""
    from quant.destination import wait_for_conversion
    from quant.errors import DestinationBusyError

    waiting = False
    while (reason := conversion.reason) is not None:
        try:
            _convert(conversion, reason, streams, threads, setup)
        except DestinationBusyError:
            if not waiting:
                streams.screen.notice(f"another qwchat is converting {conversion.located.name}: waiting for it")
            waiting = True
            wait_for_conversion(conversion.destination)
            time.sleep(_POLL_SECONDS)


def _convert(
    conversion: _Conversion, reason: str, streams: Streams, threads: int | None, setup: SetupProgress | None
) -> None:
    """Convert the model, continuing an interrupted conversion if it matches."""
    from quant import convert
    from quant.errors import ArgumentError, DestinationBusyError
    from qwchat.cli.conversion_memory import check_conversion_memory
    from qwchat.cli.convert_progress import run_conversion

    check = partial(check_conversion_memory, threads=threads)
    located, destination = conversion.located, conversion.destination
    again = models_folder.is_model(destination)
    streams.screen.notice(f"converting {located.name} into {destination} ({reason})")
    for resume in (True, False):
        events = convert(located.path, destination, resume=resume, force=again, threads=threads)
        try:
            title = f"converting {located.name}"
            run_conversion(events, title, streams, check=check, show_notices=False, setup=setup)
            return
        except DestinationBusyError:
            raise
        except ArgumentError:
            if not resume:  # The interrupted conversion does not match: start again.
                raise
