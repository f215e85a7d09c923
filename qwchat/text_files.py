"""Paths that users type, and atomic writing of text files."""

from __future__ import annotations

import os
from pathlib import Path

from quant.safe_files import atomic_write
from qwchat.characters import sanitise_name
from qwchat.errors import UsageError


def expand_path(name: str) -> Path:
    """Return the path of `name` with `~` expanded, unless there is no such user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # There is no such user.
        return Path(name)


def real_path(path: Path) -> Path:
    """Return `path` with links resolved; unchanged if no file can have that name."""
    try:
        return Path(os.path.realpath(path))  # Path.resolve fails at a loop of links.
    except (OSError, ValueError):
        return path


def replace_text(path: Path, text: str, mode: int) -> None:
    """Replace or create the file at `path` with `text` in UTF-8 and the permissions `mode`.

    A lone surrogate becomes a question mark. Raises OSError, also if `path` is a folder, a pipe or a device; no
    temporary file is left behind.
    """
    with atomic_write(path, mode) as file:
        file.write(text.encode("utf-8", "replace"))


def write_atomically(path: Path, text: str, *, overwrite: bool) -> None:
    """Write `text` in UTF-8 to `path` completely or not at all, with the permissions of a new file.

    Raises:
        UsageError: the file exists and `overwrite` is False, or it cannot be written.
    """
    umask = os.umask(0)
    os.umask(umask)
    name = sanitise_name(str(path))
    try:
        if not overwrite and (path.exists() or path.is_symlink()):
            raise UsageError(f"{name} already exists: choose another name")
        replace_text(path, text, 0o666 & ~umask)
    except (OSError, ValueError) as error:  # ValueError: the name contains a NUL.
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot write {name}: {reason}") from error
