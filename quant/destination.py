"""Destination of a conversion: whether it may be written, its lock, and the folder that becomes it when complete."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from quant.container import is_model_folder
from quant.errors import ArgumentError, DestinationBusyError, DiskFullError
from quant.safe_files import sync_folder
from quant.units import data_size
from quant.wording import ArgumentMessage, SuggestedArgument

_MARGIN_BYTES = 1 << 20
_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def translate_os_errors(where: Path) -> Iterator[None]:
    """Turn OSError into DiskFullError if the disk is full, and into ArgumentError otherwise."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in _DISK_FULL_ERRNOS:
            raise ArgumentError(f"{where} cannot be written: {exc.strerror}; check its permissions") from exc
        raise DiskFullError(
            ArgumentMessage(
                f"{where} cannot be written: {exc.strerror}; existing files are unchanged: "
                "free some space and run the same command with ",
                SuggestedArgument("resume", True),
            )
        ) from exc


def check_destination(
    destination: Path,
    source: Path,
    force: bool,
    *,
    is_replaceable: Callable[[Path], bool] = is_model_folder,
    content: str = "a model",
) -> None:
    """Raise ArgumentError if `destination` is in use or lies in `source`.

    Args:
        destination: folder to write.
        source: folder or file to read.
        force: allow a folder that `is_replaceable`.
        is_replaceable: whether a folder holds what may be replaced.
        content: what such a folder contains, for the message.
    """
    if source.resolve() in (destination.resolve(), *destination.resolve().parents):
        raise ArgumentError(f"{destination} is inside the source {source}; choose another destination")
    if not destination.exists():
        return
    if not destination.is_dir():
        raise ArgumentError(f"{destination} exists and is not a folder; choose another destination")
    if is_replaceable(destination):
        if not force:
            suggestion = SuggestedArgument("force", True)
            raise ArgumentError(
                ArgumentMessage(f"{destination} already contains {content}; use ", suggestion, " to replace it")
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


class StagedFolder:
    """Folder that is written under another name and renamed to the destination when it is complete.

    Args:
        destination: folder to write.

    Attributes:
        destination: folder to write.
        partial: folder that is written until `publish` renames it.
    """

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.partial = partial_folder(destination)
        self._lock = -1

    def lock(self) -> None:
        """Lock the destination, and restore the old folder if a forced run was killed between its two renames.

        Raises:
            ArgumentError: the parent folder does not exist or is not writable.
            DestinationBusyError: another process holds the lock.
        """
        self._lock = lock_destination(self.destination)
        with translate_os_errors(self.destination.parent):
            if self._replaced.exists():
                if self.destination.exists():
                    shutil.rmtree(self._replaced)
                else:
                    self._replaced.rename(self.destination)

    def unlock(self) -> None:
        """Release the lock."""
        lock_path(self.destination).unlink(missing_ok=True)
        os.close(self._lock)

    def check_space(self, needed: int, written: int, subject: str) -> None:
        """Raise DiskFullError unless the file system has enough free space.

        Args:
            needed: bytes of all files.
            written: bytes of them that are already on the disk.
            subject: what needs the space, for the message.
        """
        check_free_space(self.destination.parent, needed, written, subject)

    def publish(self, force: bool) -> None:
        """Sync the partial folder and rename it to the destination. With `force`, replace an existing folder."""
        sync_folder(self.partial)
        if force and self.destination.exists():
            self.destination.rename(self._replaced)
        self.partial.rename(self.destination)
        sync_folder(self.destination.parent)
        shutil.rmtree(self._replaced, ignore_errors=True)

    def discard(self) -> None:
        """Delete the partial folder."""
        shutil.rmtree(self.partial, ignore_errors=True)

    @property
    def _replaced(self) -> Path:
        return self.destination.parent / f".{self.destination.name}.replaced"


def lock_destination(destination: Path) -> int:
    """Return the descriptor of the lock of `destination`.

    Raises:
        ArgumentError: the parent folder does not exist or is not writable.
        DestinationBusyError: another process holds the lock.
    """
    if not destination.parent.is_dir():
        raise ArgumentError(f"{destination.parent} is not a folder; create it first")
    with translate_os_errors(destination.parent):
        return acquire_lock(lock_path(destination), destination)


def check_free_space(folder: Path, needed: int, written: int, subject: str) -> None:
    """Raise DiskFullError unless the file system of `folder` has enough free space.

    Args:
        folder: folder that will be written.
        needed: bytes of all files.
        written: bytes of them that are already on the disk.
        subject: what needs the space, for the message.
    """
    needed += _MARGIN_BYTES
    free = shutil.disk_usage(folder).free
    if free + written < needed:
        raise DiskFullError(
            f"{folder} has {data_size(free, 2)} free, but {subject} needs {data_size(needed, 2)}"
            f"{f' ({data_size(written, 2)} already written)' if written else ''}; "
            "free some space or choose another destination"
        )


def allocated_bytes(path: Path) -> int:
    """Return the bytes that a file takes on the disk, 0 if it does not exist."""
    return 512 * path.stat().st_blocks if path.exists() else 0


def open_reserved(path: Path, size: int) -> int:
    """Open or create a file of `size` bytes for writing and reserve its space. Return the descriptor.

    The space is reserved so that the run cannot fail later because the disk fills up. macOS and some file systems do
    not support this.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if hasattr(os, "posix_fallocate") and size:
            try:
                os.posix_fallocate(descriptor, 0, size)
            except OSError as exc:
                if exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at byte `offset` of a file."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def append_record(descriptor: int, record: object) -> None:
    """Append one line of JSON. If the write fails, remove the incomplete line, so that the file stays readable."""
    line = json.dumps(record).encode() + b"\n"
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    if os.write(descriptor, line) != len(line):
        os.ftruncate(descriptor, before)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
