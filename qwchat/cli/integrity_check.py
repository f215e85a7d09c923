"""Wait for the check of a model's files, and name the command that repairs a damaged model."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from quant.gguf_names import parse_name
from quant.presets import DEFAULT_PRESET, IMPORTED_PRESET
from qwchat import models_folder
from qwchat.chat.view.progress import ByteProgress, byte_progress
from qwchat.cli.streams import Streams
from qwchat.errors import DamagedModelError, UsageError

if TYPE_CHECKING:
    from quant.container import ModelFolder
    from qwchat.api import Model

TITLE = "checking the model's files"
_PROGRESS_DELAY_SECONDS = 1.0
_POLL_SECONDS = 0.1


def wait_until_checked(model: Model, streams: Streams) -> None:
    """Wait for the check of a model's files, with a progress bar after one second.

    Raises DamagedModelError if a file is damaged.
    """
    integrity, started = model.integrity, time.monotonic()
    with ExitStack() as stack:
        progress: ByteProgress | None = None
        while not integrity.wait(_POLL_SECONDS):
            if progress is None and time.monotonic() - started >= _PROGRESS_DELAY_SECONDS:
                shown = byte_progress(TITLE, integrity.total_bytes, streams.screen, rewritable=streams.rewritable)
                progress = stack.enter_context(shown)
            if progress is not None:
                progress.update(integrity.done_bytes, "")
    integrity.raise_if_damaged()


@contextmanager
def with_repair_command(folder: ModelFolder) -> Iterator[None]:
    """Add the command that converts the model again to a DamagedModelError."""
    try:
        yield
    except DamagedModelError as error:
        raise error.with_remedy(repair_command(folder)) from error


def repair_command(folder: ModelFolder) -> str:
    """Return the command that converts or pulls a model again, as a sentence."""
    from quant.formats import FORMATS

    if pull := _pull_command(folder):
        return f"remove it with {shlex.join(['qwchat', 'rm', folder.path.name])}, then pull it again with {pull}"
    manifest = folder.manifest
    settings, name = manifest["settings"], str(manifest["source"].get("name", ""))
    source = _find_checkpoint(name)
    words = ["qwchat", "convert", source or "SOURCE", str(folder.path)]
    # The default of a quantised source is to keep its tensors.
    requantised = any("requantised_from" in entry for entry in manifest["tensors"].values())
    if settings["preset"] != (IMPORTED_PRESET if requantised else DEFAULT_PRESET):
        words += ["--preset", settings["preset"]]
    if settings.get("group_size") in {size for fmt in FORMATS.values() for size in fmt.group_sizes[1:]}:
        words += ["--group-size", str(settings["group_size"])]
    command = shlex.join([*words, "--force"])
    if source is not None:
        return f"convert it again with {command}"
    kind = "path of the GGUF file" if parse_name(name) is not None else "folder of the checkpoint"
    return f"convert it again with {command}, where SOURCE is the {kind} {name}".rstrip()


def _pull_command(folder: ModelFolder) -> str | None:
    """Return the command that pulled a model, or None."""
    from qwchat.store.hub import parse_repository

    source, preset = folder.manifest["source"], folder.manifest["settings"]["preset"]
    repository = f"{source.get('repository')}@{source.get('revision')}"
    try:
        parse_repository(repository)
    except UsageError:
        return None
    words = ["qwchat", "pull", repository, "--as", folder.path.name]
    if isinstance(file := source.get("file"), str):
        words += ["--file", file]
    return shlex.join(words if preset in (DEFAULT_PRESET, IMPORTED_PRESET) else [*words, "--preset", str(preset)])


def _find_checkpoint(name: str) -> str | None:
    """Return the path of a checkpoint or GGUF file by its name, in the models folder or built in, or None."""
    if not name or name != name.strip(".") or "/" in name:
        return None
    embedded = models_folder.embedded_checkpoint()
    for path in (models_folder.models_folder() / name, *([embedded] if name == models_folder.EMBEDDED_NAME else [])):
        if models_folder.is_checkpoint(path) or models_folder.is_gguf(path):
            return str(path)
    return None
