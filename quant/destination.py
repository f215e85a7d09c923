"""Destination of a conversion: whether it may be written, and the lock that keeps other conversions out."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from quant.container import is_model_folder
from quant.errors import ArgumentError, DestinationBusyError
from quant.wording import ArgumentMessage, SuggestedArgument


def check_destination(destination: Path, source: Path, force: bool) -> None:
    """Raise ArgumentError if `destination` is in use or lies in `source`."""
    if source.resolve() in (destination.resolve(), *destination.resolve().parents):
        raise ArgumentError(f"{destination} is inside the source {source}; choose another destination")
    if not destination.exists():
        return
    if not destination.is_dir():
        raise ArgumentError(f"{destination} exists and is not a folder; choose another destination")
    if is_model_folder(destination):
        if not force:
            suggestion = SuggestedArgument("force", True)
            raise ArgumentError(
                ArgumentMessage(f"{destination} already contains a model; use ", suggestion, " to replace it")
            )
    elif any(destination.iterdir()):
        raise ArgumentError(f"{destination} is a folder with other files; choose another destination")


def lock_path(destination: Path) -> Path:
    """Return the path of the lock file."""
    return destination.parent / f".{destination.name}.lock"


def partial_folder(destination: Path) -> Path:
    """Return the folder that a conversion to `destination` is written to until it is complete."""
    return destination.parent / f".{destination.name}.partial"


def wait_for_conversion(destination: Path) -> None:
    """Wait until no other process is converting to `destination`. Another one may start right after."""
    try:
        descriptor = os.open(lock_path(destination), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # the conversion has ended and deleted the file
        return
    with os.fdopen(descriptor):
        fcntl.flock(descriptor, fcntl.LOCK_SH)


def acquire_lock(path: Path, destination: Path) -> int:
    """Return the descriptor of an exclusive lock. Raises DestinationBusyError if another conversion holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise DestinationBusyError(
                f"another conversion to {destination} is running; wait for it or choose another destination"
            ) from None
        # The holder may have deleted the file between open and flock. Then the lock would not exclude other processes.
        try:
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)
