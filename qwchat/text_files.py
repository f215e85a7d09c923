"""Files that people name, and replacing one by a text as a whole."""

from __future__ import annotations

import os
from pathlib import Path

from quant.safe_files import atomic_write
from qwchat.characters import sanitise_name
from qwchat.errors import UsageError


def expand_path(name: str) -> Path:
    """The path, with `~` resolved where it names somebody's home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # The home folder of nobody, as in ~nobody.
        return Path(name)


def real_path(path: Path) -> Path:
    """`path` without links; as it is where no file can be there, as with a NUL in its name."""
    try:
        return Path(os.path.realpath(path))  # Path.resolve would fail at links that lead in a circle.
    except (OSError, ValueError):
        return path


def replace_text(path: Path, text: str, mode: int) -> None:
    """Replace the file at `path`, which need not exist, by `text` in UTF-8 with the permissions `mode`.

    A character that UTF-8 cannot hold becomes a question mark. Raises OSError, also if `path` is a folder, a pipe or a
    device; then no temporary file is left.
    """
    with atomic_write(path, mode) as file:
        file.write(text.encode("utf-8", "replace"))


def write_atomically(path: Path, text: str, *, overwrite: bool) -> None:
    """Write `text` in UTF-8 to `path`, which appears whole or not at all, with the permissions of new files.

    Raises UsageError if the file exists and `overwrite` is False, and if it cannot be written.
    """
    umask = os.umask(0)
    os.umask(umask)
    name = sanitise_name(str(path))
    try:
        if not overwrite and (path.exists() or path.is_symlink()):
            raise UsageError(f"{name} exists already: choose another name")
        replace_text(path, text, 0o666 & ~umask)
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name.
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot write {name}: {reason}") from error
