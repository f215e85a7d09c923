"""Files that people name, and replacing one by a text as a whole."""

from __future__ import annotations

import os
from pathlib import Path

from quant.files import replacing


def path_of(name: str) -> Path:
    """The path, with ``~`` resolved where it names somebody's home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # The home folder of nobody, as in ~nobody.
        return Path(name)


def real_path(path: Path) -> Path:
    """``path`` without links; as it is where no file can be there, as with a NUL in its name."""
    try:
        return Path(os.path.realpath(path))  # Path.resolve would fail at links that lead in a circle.
    except (OSError, ValueError):
        return path


def replace_text(path: Path, text: str, mode: int) -> None:
    """Replace the file at `path`, which need not exist, by `text` in UTF-8 with the permissions `mode`.

    A character that UTF-8 cannot hold becomes a question mark. Raises OSError, also if `path` is a folder, a pipe or a
    device; then no temporary file is left.
    """
    with replacing(path, mode) as file:
        file.write(text.encode("utf-8", "replace"))
