"""What a repository holds, before its weights are downloaded: a quantised source or not, and the size of its model."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from quant.conversion import ConversionPlanned, convert_source
from quant.errors import CheckpointError
from quant.policy import conversion_spec
from quant.safe_files import read_json_object
from quant.sources import Source, open_source
from qwchat.errors import QwchatError
from qwchat.store.hub import Repository
from qwchat.store.hub_download import download, read_small
from qwchat.store.hub_files import HubFile

_FIRST_BYTES = 8 << 20
"""Of the first file of a GGUF model. The header with a vocabulary of 150,000 tokens has 6 MB."""
_PART_BYTES = 1 << 20
_MOST_BYTES = 64 << 20
"""Limit of a header."""


@dataclass(frozen=True)
class Preview:
    """What a repository holds.

    Attributes:
        quantised: whether its weights are quantised.
        preset: formats of the tensors: the requested preset, or the default of its kind.
        model_bytes: weights of the model that it becomes; None if that is not known before the download.
    """

    quantised: bool
    preset: str
    model_bytes: int | None = None


def preview(repository: Repository, preset: str | None) -> Preview:
    """Read config.json, or the headers of a GGUF model.

    Args:
        repository: what is pulled.
        preset: formats of the tensors; None for the default of its kind.

    Raises:
        HubError: the hub does not answer as announced.
        ModelError: a file cannot be had.
        CheckpointError, FormatError, ArgumentError: it cannot be converted.
        QwchatError: the folder of temporary files cannot be written, or a stated size is impossible.
    """
    try:
        with tempfile.TemporaryDirectory() as name:
            return _preview(repository, preset, Path(name))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise QwchatError(
            f"cannot store the beginning of {repository.name} in the folder of temporary files ({reason}): "
            "free some space there, or set TMPDIR, and pull again"
        ) from error


def _preview(repository: Repository, preset: str | None, folder: Path) -> Preview:
    if not repository.is_gguf:
        read_small(repository, repository.files["config.json"], folder)
        config = read_json_object(folder / "config.json", CheckpointError)
        quantised = bool(config.get("quantization_config"))
        return Preview(quantised, conversion_spec(preset, quantised=quantised).preset)
    for number, file in enumerate(repository.weight_files):
        _fetch_beginning(repository, file, folder, _PART_BYTES if number else _FIRST_BYTES)
    with _open_beginnings(repository, folder) as source:
        spec = conversion_spec(preset, quantised=source.quantised)
        planned = next(convert_source(source, folder / "model", spec, dry_run=True))
        assert isinstance(planned, ConversionPlanned), "the plan is the first event"
        return Preview(source.quantised, spec.preset, planned.total_bytes_out)


def _open_beginnings(repository: Repository, folder: Path) -> Source:
    """Open a GGUF model of whose files only the beginnings are here; fetch more where that cuts a header.

    Raises what `preview` raises.
    """
    first = folder / repository.weight_files[0].local_name
    try:
        return open_source(first)
    except CheckpointError:
        if all(file.size <= _PART_BYTES for file in repository.weight_files):
            raise
    for file in repository.weight_files:
        _fetch_beginning(repository, file, folder, _MOST_BYTES)
    return open_source(first)


def _fetch_beginning(repository: Repository, file: HubFile, folder: Path, count: int) -> None:
    """Fetch the first bytes of a file. The file here gets its whole size, which takes no space on the disk."""
    path = folder / file.local_name
    with path.open("wb") as stream:
        download(repository, file, _Beginning(stream.fileno()), 0, min(count, file.size))
        os.truncate(path, file.size)


class _Beginning:
    """The beginning of a file as `download` writes it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: memoryview) -> None:
        """Write the next bytes. Raises OSError."""
        while data:
            data = data[os.write(self._descriptor, data) :]

    def restart(self) -> None:
        """Remove what was written."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
