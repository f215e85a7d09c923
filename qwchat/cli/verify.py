"""The command `qwchat verify`: compare a model's files with the checksums in its manifest."""

from __future__ import annotations

import shlex
import threading
from typing import TYPE_CHECKING

from quant.units import data_size
from qwchat import models_folder
from qwchat.chat.view.progress import byte_progress
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.ensure_model import requested_model
from qwchat.cli.error_messages import error_message
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.integrity_check import TITLE, repair_command
from qwchat.cli.json_output import json_line
from qwchat.cli.model_options import VerifyOptions
from qwchat.cli.streams import Streams
from qwchat.errors import DamagedModelError, ModelError, UsageError
from qwchat.models_folder import LocatedModel

if TYPE_CHECKING:
    from quant.container import ModelFolder
    from quant.verification import Verification

_POLL_SECONDS = 0.1


def run(options: VerifyOptions, dependencies: Dependencies) -> int:
    """Check a model, and print one line or one JSON object. Raises DamagedModelError if a file is damaged."""
    from quant.container import open_model
    from quant.errors import ContainerError
    from quant.verification import Verification, folder_state
    from qwchat.integrity import CHECKED_FILES, record_result

    streams = Streams(quiet=options.quiet)
    located = _converted_model(models_folder.locate(requested_model(options.model)), streams)
    try:
        folder = open_model(located.path)
        state = folder_state(folder, CHECKED_FILES)
    except ContainerError as error:
        if options.json:
            found = {"name": located.name, "path": str(located.path), "intact": False, "error": error_message(error)}
            streams.write(json_line(found) + "\n")
        raise
    verification = Verification(folder)
    _check(verification, streams)
    if verification.removed:
        raise ModelError(f"{located.path} was removed during the check: run qwchat list to see what is there")
    record_result(folder, state, intact=not verification.damaged)
    if options.json:
        streams.write(json_line(_as_data(located, folder, verification)) + "\n")
    if verification.damaged:
        raise DamagedModelError(located.path, verification.report, repair_command(folder))
    if not options.json:
        streams.write(_as_text(located, folder, verification) + "\n")
    return ExitCode.OK


def _converted_model(located: LocatedModel, streams: Streams) -> LocatedModel:
    """Return the model or its conversion. Raises UsageError if it is not converted."""
    if located.converted:
        return located
    if not models_folder.is_model(located.destination):
        raise UsageError(
            f"{located.path} is a {located.kind} without checksums: convert it with "
            f"{shlex.join(['qwchat', 'convert', str(located.path)])}, then verify the converted model"
        )
    streams.screen.notice(f"{located.name} is a {located.kind}: checking its conversion, {located.destination}")
    return LocatedModel(located.destination.name, located.destination, converted=True, embedded=located.embedded)


def _check(verification: Verification, streams: Streams) -> None:
    """Compare all files on all cores; Ctrl-C stops it."""
    from qwchat.cpu.kernels.thread_counts import default_threads

    failures: list[BaseException] = []

    def work() -> None:
        try:
            verification.work()
        except BaseException as error:  # noqa: BLE001  # Raised below, in the main thread.
            failures.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(default_threads())]
    try:
        with byte_progress(TITLE, verification.total_bytes, streams.screen, rewritable=streams.rewritable) as progress:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(_POLL_SECONDS)
                    progress.update(verification.done_bytes, "")
    finally:
        verification.stop()
    if failures:
        raise failures[0]


def _files_without_checksum(folder: ModelFolder) -> list[str]:
    """Return the model's files that have no checksum in the manifest."""
    from quant.safe_files import COPIED_FILES

    return [name for name in COPIED_FILES if name not in folder.manifest["files"] and (folder.path / name).exists()]


def _as_text(located: LocatedModel, folder: ModelFolder, verification: Verification) -> str:
    files = len(verification.files)
    line = (
        f"{located.name} is intact: {len(folder.names)} tensors and {files} other file{'s' if files != 1 else ''} "
        f"({data_size(verification.total_bytes)}) match manifest.json"
    )
    uncovered = _files_without_checksum(folder)
    return f"{line}, which has no checksum of {', '.join(uncovered)}" if uncovered else line


def _as_data(located: LocatedModel, folder: ModelFolder, verification: Verification) -> dict[str, object]:
    return {
        "name": located.name,
        "path": str(located.path),
        "intact": not verification.damaged,
        "bytes": verification.total_bytes,
        "tensors": len(folder.names),
        "files": list(verification.files),
        "not_covered": _files_without_checksum(folder),
        "damaged": [{"name": name, "problem": problem} for name, problem in verification.damaged.items()],
        "remedy": repair_command(folder) if verification.damaged else None,
    }
