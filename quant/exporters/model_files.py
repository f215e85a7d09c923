"""Read the small files of a model folder for an export."""

from __future__ import annotations

import hashlib

from quant.container import ModelFolder
from quant.errors import ContainerError
from quant.safe_files import parse_json_object, read_bounded


def small_files(model: ModelFolder) -> dict[str, bytes]:
    """Return the content of every file that the manifest lists, by name.

    Raises:
        ContainerError: a file is missing, does not match its checksum, or is not the JSON that its name promises.
    """
    files = {}
    for name, entry in model.manifest["files"].items():
        path = model.path / name
        data = read_bounded(path, ContainerError)
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise ContainerError(f"{path} does not match its checksum; convert the model again")
        if name.endswith(".json"):
            parse_json_object(data, str(path), ContainerError)
        files[name] = data
    if "config.json" not in files:
        raise ContainerError(f"{model.path} has no checksum of config.json; convert the model again")
    return files
