"""Where commands write a file about a model if they are not told."""

from __future__ import annotations

from pathlib import Path

from qwchat import models_folder
from qwchat.errors import QwchatError


def default_file(name: str) -> Path:
    """Return the file of that name in the models folder, which is created. Raises QwchatError if it cannot be."""
    folder = models_folder.models_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QwchatError(f"cannot create {folder} ({error.strerror}): give --output") from error
    return folder / name
