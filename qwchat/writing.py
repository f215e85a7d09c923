"""Files that people name, and writing one as a whole: what stood there before, or all of what comes, never a part."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


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
    """Replace the file at ``path``, which need not exist, by ``text`` in UTF-8 with the permissions ``mode``.

    What UTF-8 cannot hold becomes a question mark. Raises OSError, also where a folder, a pipe or a device is
    there, and leaves nothing of its own behind.
    """
    import tempfile

    if _is_special(path):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    part = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(mode)
        part.replace(path)
    except BaseException:  # Ctrl-C included: it goes on, but without the temporary file.
        part.unlink(missing_ok=True)
        raise


def _is_special(path: Path) -> bool:
    """Return whether there is something else than a file or a link at `path`, which a rename would destroy."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISLNK(mode))
