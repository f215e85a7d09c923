"""A repository whose weights are downloaded as a whole before anything is read: GGUF and quantised checkpoints.

The formats of a quantised checkpoint depend on its data, and a GGUF model is mostly a single file, so a conversion
during the download would gain little.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from quant.model_config import ModelConfig
from quant.sources import QuantisedRows, Rows, Source, TensorInfo, open_source
from qwchat.store.hub import Repository
from qwchat.store.hub_checkpoint import fetch_small_files
from qwchat.store.shards import Shards

_POLL_SECONDS = 0.25


def download_all(repository: Repository, folder: Path) -> Iterator[int]:
    """Download the files that `folder` lacks, and compare their checksums.

    Yields:
        Bytes of weights that are here, by earlier attempts too, several times a second.

    Raises:
        HubError: the hub does not answer as announced, or a checksum is wrong.
        ModelError: a file cannot be had.
        OSError: the disk is full or cannot be written.
    """
    fetch_small_files(repository, folder)
    shards = Shards(repository, folder, repository.weight_files, keep=True)
    names = [file.name for file in repository.weight_files]
    shards.start(names)
    try:
        for name in names:
            while not shards.wait(name, _POLL_SECONDS):
                yield shards.fetched
        yield shards.fetched
    finally:
        shards.stop()


class DownloadedSource(Source):
    """Source in the folder of a download, with the origin of its repository.

    Args:
        repository: where it comes from.
        folder: folder with all its files.

    Raises:
        CheckpointError: the files are malformed or contradict each other.
    """

    def __init__(self, repository: Repository, folder: Path) -> None:
        self._repository = repository
        self._source = open_source(folder / repository.weight_files[0].local_name if repository.is_gguf else folder)

    @property
    def path(self) -> Path:
        """Folder or file of the download."""
        return self._source.path

    @property
    def name(self) -> str:
        """Name of the first file of a GGUF model, or of the repository without its owner."""
        return self._source.name if self._repository.is_gguf else self._repository.name.rpartition("/")[2]

    @property
    def origin(self) -> Mapping[str, str]:
        """What the manifest keeps of the repository."""
        return self._repository.origin

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the revision and the checksums of its files."""
        return self._repository.fingerprint

    @property
    def config(self) -> ModelConfig:
        """Hyperparameters of the model."""
        return self._source.config

    @property
    def files(self) -> Mapping[str, bytes]:
        """Content of the small files of the model folder."""
        return self._source.files

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in file order."""
        return self._source.tensors

    @property
    def quantised(self) -> bool:
        """Whether any tensor is quantised."""
        return self._source.quantised

    @property
    def notices(self) -> Sequence[str]:
        """Texts to show to the user before the conversion."""
        return self._source.notices

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Rows | QuantisedRows:
        """Read rows of a tensor."""
        return self._source.read(name, start, stop)

    def release(self, name: str, start: int, stop: int) -> None:
        """Release the memory of rows `start` to `stop`, exclusive."""
        self._source.release(name, start, stop)

    def close(self) -> None:
        """Close the files."""
        self._source.close()
