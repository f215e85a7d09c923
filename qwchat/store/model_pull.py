"""Pull a model: download a repository and convert it.

A checkpoint is converted while it downloads, in the disk space of the result and one shard. Quantised sources are
downloaded first.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quant.destination import acquire_lock, partial_folder
from quant.errors import DestinationBusyError
from quant.units import data_size
from qwchat.errors import HubError, QwchatError, UsageError
from qwchat.store.downloaded_source import DownloadedSource, download_all
from qwchat.store.hub import Repository
from qwchat.store.hub_checkpoint import HubCheckpoint
from qwchat.store.hub_preview import Preview

if TYPE_CHECKING:
    from quant.conversion import ConversionEvent
    from quant.sources import Source

_REPOSITORY_NAME = "repository.json"
_LOCK_NAME = "lock"
_MARGIN_BYTES = 64 << 20


@dataclass(frozen=True)
class DownloadAdvanced:
    """Event of a download that comes before the conversion: bytes that are here, of all bytes of the weights."""

    bytes_done: int
    total_bytes: int


class Pull:
    """One model on its way from a hub into the models folder.

    Use it in a `with` block, which holds a lock: of two pulls of one model, the second is refused.

    Args:
        repository: what is pulled.
        destination: the model folder to make.
        found: what the repository holds, and the preset.
        keep_checkpoint: keep the files of the repository beside the model, under the repository's name.
        threads: quantising threads, by default the CPUs that this process may use.
    """

    def __init__(
        self,
        repository: Repository,
        destination: Path,
        found: Preview,
        *,
        keep_checkpoint: bool = False,
        threads: int | None = None,
    ) -> None:
        self.repository, self.destination = repository, destination
        self._found, self._keep, self._threads = found, keep_checkpoint, threads
        self._folder = _download_folder(destination)
        self._source: HubCheckpoint | None = None

    @property
    def checkpoint(self) -> Path:
        """Where the files of the repository are kept, if they are."""
        return self.destination.parent / self.repository.name.rpartition("/")[2]

    @property
    def fetched_bytes(self) -> int:
        """Bytes of weights that were downloaded so far, by earlier attempts too."""
        return 0 if self._source is None else self._source.fetched_bytes

    @property
    def downloads_first(self) -> bool:
        """Whether everything is downloaded before the conversion begins."""
        return self.repository.is_gguf or self._found.quantised

    def events(self) -> Generator[DownloadAdvanced | ConversionEvent, None, None]:
        """Do the work while the events are taken; closing the iterator keeps what is done for the next attempt.

        Raises:
            HubError: the hub does not answer, or not with what it announced; the disk is full.
            ModelError: the repository cannot be used.
            UsageError: another process pulls this model, or the checkpoint's folder is taken.
            CheckpointError, FormatError, ArgumentError, DiskFullError: as `quant.convert`.
            QwchatError: the models folder cannot be written.
        """
        try:
            yield from self._download_and_convert()
        except OSError as error:
            remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "set QWCHAT_MODELS"
            where = error.filename or self.destination.parent
            raise QwchatError(f"cannot write {where} ({error.strerror}): {remedy} and pull again") from error

    def _download_and_convert(self) -> Generator[DownloadAdvanced | ConversionEvent, None, None]:
        if self._keep and self.checkpoint.exists():
            raise UsageError(f"{self.checkpoint} exists already: remove it, or pull without keeping the checkpoint")
        self.destination.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._begin()
            if self.downloads_first:
                # Codes are mostly kept, so that the model is about as large as the download if its size is unknown.
                self._check_space(self._found.model_bytes or self._weight_bytes)
                for done in download_all(self.repository, self._folder):
                    yield DownloadAdvanced(done, self._weight_bytes)
                with DownloadedSource(self.repository, self._folder) as source:
                    yield from self._convert(source)
            else:
                with HubCheckpoint.open(self.repository, self._folder, keep=self._keep) as self._source:
                    yield from self._convert(self._source)
            if self._keep:
                self._keep_checkpoint()
            else:
                shutil.rmtree(self._folder)

    def _convert(self, source: Source) -> Generator[ConversionEvent, None, None]:
        from quant.conversion import ConversionPlanned, convert_source
        from quant.policy import conversion_spec

        spec = conversion_spec(self._found.preset, quantised=source.quantised)
        resume = partial_folder(self.destination).exists()
        with closing(convert_source(source, self.destination, spec, resume=resume, threads=self._threads)) as events:
            for event in events:
                if isinstance(event, ConversionPlanned):
                    self._check_space(event.total_bytes_out)
                yield event

    @property
    def _weight_bytes(self) -> int:
        return sum(file.size for file in self.repository.weight_files)

    def _begin(self) -> None:
        """Make the folder of the download, or empty one of another revision."""
        record = self._folder / _REPOSITORY_NAME
        identity = json.dumps(
            {
                "repository": self.repository.name,
                "revision": self.repository.revision,
                "files": {file.name: [file.size, file.sha256] for file in self.repository.files.values()},
            },
            indent=1,
        )
        try:
            same = record.read_text(encoding="utf-8") == identity
        except (OSError, ValueError):
            same = False
        if not same:
            for entry in self._folder.iterdir():
                if entry.name != _LOCK_NAME:
                    entry.unlink()
            shutil.rmtree(partial_folder(self.destination), ignore_errors=True)
            record.write_text(identity, encoding="utf-8")

    def _check_space(self, model_bytes: int) -> None:
        """Check that the disk has space for the model and for the files that are there at the same time.

        Raises:
            HubError: it does not.
        """
        weights = [file.size for file in self.repository.files.values() if file.sha256 is not None or file.is_weights]
        download = sum(weights) if self._keep or self.downloads_first else max(weights, default=0)
        folders = [folder for folder in (self._folder, partial_folder(self.destination)) if folder.exists()]
        here = sum(entry.stat().st_blocks * 512 for folder in folders for entry in folder.iterdir())
        wanted, free = model_bytes + download + _MARGIN_BYTES - here, shutil.disk_usage(self._folder).free
        if wanted > free:
            raise HubError(
                f"{self._folder.parent} has {data_size(free, 2)} free, but {data_size(wanted, 2)} are needed for the "
                f"model ({data_size(model_bytes, 2)}) and its download ({data_size(download, 2)}): free some space, or "
                "set QWCHAT_MODELS to a folder on another disk"
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(exist_ok=True)
        try:
            descriptor = acquire_lock(self._folder / _LOCK_NAME, self.destination)
        except DestinationBusyError as error:
            raise UsageError(f"another process pulls {self.destination.name}: wait for it") from error
        try:
            yield
        finally:
            os.close(descriptor)

    def _keep_checkpoint(self) -> None:
        kept = {file.local_name for file in self.repository.files.values()}
        for entry in self._folder.iterdir():
            if entry.name not in kept:
                entry.unlink()
        self._folder.rename(self.checkpoint)


def remove_leftovers(destination: Path) -> None:
    """Remove the download of a model that is complete, which a kill in the last moment left."""
    folder = _download_folder(destination)
    if folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)


def _download_folder(destination: Path) -> Path:
    return destination.parent / f".{destination.name}.pull"
