"""`qwchat rm`: remove models from the models folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from quant.units import data_size
from qwchat import models_folder
from qwchat.cli.confirmation import confirm
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.model_options import RemoveOptions
from qwchat.cli.streams import Streams, stdin_is_terminal
from qwchat.errors import QwchatError, UsageError
from qwchat.last_use import forget_use
from qwchat.models_folder import LocatedModel


def run(options: RemoveOptions, dependencies: Dependencies) -> int:
    """Remove models after asking for confirmation. Raises UsageError if standard input is not a terminal."""
    streams = Streams(quiet=options.quiet)
    models = {model.path: model for model in map(_removable, options.models)}
    if not options.yes:
        if not stdin_is_terminal():
            raise UsageError("rm needs a terminal to ask for confirmation: give --yes to remove without asking")
        for model in models.values():
            streams.screen.hint(f"{model.name}  {data_size(_size(model))}")
        question = "remove it?" if len(models) == 1 else f"remove these {len(models)}?"
        if not confirm(streams, question):
            streams.screen.hint("nothing removed")
            return ExitCode.OK
    for model in models.values():
        _remove(model)
        streams.screen.notice(f"removed {model.name}")
    return ExitCode.OK


def _removable(name: str) -> LocatedModel:
    """Return a model of the models folder. Raises ModelError if it does not exist, UsageError if it lies elsewhere."""
    located = models_folder.locate(name)
    if located.embedded:
        raise UsageError(f"{located.name} is built in and cannot be removed; rm removes models of the models folder")
    if located.path.parent.resolve() != models_folder.models_folder().resolve() or located.path.is_symlink():
        raise UsageError(f"{located.path} is not in {models_folder.models_folder()}: remove it yourself")
    return located


def _remove(model: LocatedModel) -> None:
    """Remove a model. Raises QwchatError if the system refuses it."""
    path = model.path
    try:
        if path.is_dir():
            _remove_folder(path)
            forget_use(path)
        else:
            for file in model.files:
                file.unlink(missing_ok=True)
    except OSError as error:
        raise QwchatError(f"cannot remove {path}: {error.strerror}; check the permissions of its folder") from error


def _remove_folder(path: Path) -> None:
    """Take the name away first: a program that has the model open keeps its files, and a kill leaves no half model."""
    doomed = path.with_name(f".{path.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def _size(model: LocatedModel) -> int:
    files = model.path.iterdir() if model.path.is_dir() else model.files
    return sum(file.stat().st_size for file in files if file.is_file())
