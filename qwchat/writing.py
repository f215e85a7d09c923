"""Writing a text file as a whole: what stood there before, or all of what comes, never something in between."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def replace_text(path: Path, text: str, mode: int) -> None:
    """Replace the file at ``path``, which need not exist, by ``text`` in UTF-8 with the permissions ``mode``.

    What UTF-8 cannot hold becomes a question mark. Raises OSError, and leaves nothing of its own behind.
    """
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
