"""When a model of the models folder was last opened: the time of an empty file in `.last-used`, named after the model.

The record is a convenience: where it cannot be written or read, such as in a read-only folder, it is left out.
"""

from __future__ import annotations

import contextlib
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

from qwchat.models_folder import models_folder

_FOLDER_NAME = ".last-used"


def record_use(model: Path) -> None:
    """Record that a model is used now. Nothing is recorded for models outside of the models folder."""
    with contextlib.suppress(OSError):
        record = _record(model)
        if record is None:
            return
        record.parent.mkdir(mode=0o700, exist_ok=True)
        # A link is not followed, and a pipe is not waited for.
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(record, flags, 0o600)
        try:
            os.utime(descriptor)
        finally:
            os.close(descriptor)


def last_use(model: Path) -> datetime | None:
    """Return when a model was last used (UTC); None if that is not recorded."""
    try:
        record = _record(model)
        status = None if record is None else record.lstat()
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        return datetime.fromtimestamp(int(status.st_mtime), UTC)
    except (OSError, OverflowError, ValueError):
        return None


def forget_use(model: Path) -> None:
    """Remove the record of a model that is removed."""
    with contextlib.suppress(OSError):
        if (record := _record(model)) is not None:
            record.unlink(missing_ok=True)


def _record(model: Path) -> Path | None:
    folder = models_folder().resolve()
    return folder / _FOLDER_NAME / model.name if model.resolve().parent == folder else None
