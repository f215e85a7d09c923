"""A checkpoint on a model hub as a source of a conversion: tensors are read as soon as their shard is verified."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from quant.errors import CheckpointError
from quant.families import read_config
from quant.model_config import ModelConfig
from quant.safe_files import (
    COPIED_FILES,
    SINGLE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    atomic_write,
    parse_json_object,
    read_bounded,
)
from quant.sources import Rows, Source, TensorInfo
from quant.sources.huggingface import HuggingFaceCheckpoint
from quant.sources.safetensors import StoredTensor, parse_header
from qwchat.store.hub import Repository
from qwchat.store.hub_download import read_small
from qwchat.store.hub_files import HubFile
from qwchat.store.shards import Shards

STATE_NAME = "pull.json"
_MAX_SHARDS = 1024


class HubCheckpoint(Source):
    """A repository, opened: small files are here, headers of the shards are read, the weights come in the background.

    Args:
        repository: what is pulled.
        folder: where its files are kept until they are converted.
        shards: its weight files.
        stored: where each tensor lies.
        small: the small files.
    """

    def __init__(
        self,
        repository: Repository,
        folder: Path,
        shards: Shards,
        stored: dict[str, StoredTensor],
        small: dict[str, bytes],
    ) -> None:
        self._repository, self._folder, self._shards, self._stored = repository, folder, shards, stored
        self._checkpoint = HuggingFaceCheckpoint(folder, stored, small, repository.fingerprint)
        self._remaining: dict[str, set[str]] = {}  # shard -> its tensors that are still to be converted
        self._discarded: set[str] = set()

    @classmethod
    def open(cls, repository: Repository, folder: Path, *, keep: bool = False) -> HubCheckpoint:
        """Fetch the small files and the headers of the shards that `folder` lacks.

        Args:
            repository: what is pulled.
            folder: where its files are kept; it belongs to this revision alone.
            keep: keep shards that have been converted.

        Raises:
            HubError: the hub does not answer as announced.
            ModelError: the repository cannot be used.
            CheckpointError: a file is malformed or contradicts another one.
        """
        fetch_small_files(repository, folder)
        read_config(folder)  # A model of another family is refused before its weights come.
        files = _shard_files(repository, folder)
        if len(files) > _MAX_SHARDS:
            raise CheckpointError(f"{repository.name} has {len(files):,} weight files, more than {_MAX_SHARDS:,}")
        shards = Shards(repository, folder, files, keep=keep)
        stored: dict[str, StoredTensor] = {}
        for file in files:
            found = parse_header(shards.fetch_header(file.name), shards.path(file.name), file.size)
            if twice := sorted(set(found) & set(stored)):
                raise CheckpointError(f"{repository.name}: tensor {twice[0][:200]} is in two shards")
            stored.update(found)
        small = {
            name: read_bounded(folder / name, CheckpointError) for name in COPIED_FILES if name in repository.files
        }
        return cls(repository, folder, shards, stored, small)

    @property
    def path(self) -> Path:
        """The folder that holds what has arrived."""
        return self._folder

    @property
    def name(self) -> str:
        """The name of the repository without its owner, as of a folder that it is downloaded to."""
        return self._repository.name.rpartition("/")[2]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the revision and the checksums of its files."""
        return self._checkpoint.fingerprint

    @property
    def config(self) -> ModelConfig:
        """The numbers in config.json."""
        return self._checkpoint.config

    @property
    def files(self) -> Mapping[str, bytes]:
        """The small files that travel with the model."""
        return self._checkpoint.files

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name, in file order."""
        return self._checkpoint.tensors

    @property
    def origin(self) -> Mapping[str, str]:
        """What the manifest keeps of the repository."""
        return self._repository.origin

    @property
    def fetched_bytes(self) -> int:
        """Bytes of the shards that were downloaded so far."""
        return self._shards.fetched

    def announce(self, names: Sequence[str]) -> None:
        """Begin to fetch the shards of these tensors."""
        state = self._folder / STATE_NAME
        with suppress(OSError, ValueError):
            self._discarded = set(json.loads(state.read_text(encoding="utf-8"))["discarded"])
        for name in names:
            self._remaining.setdefault(self._stored[name].file.name, set()).add(name)
        for shard, needed in self._remaining.items():
            if needed & self._discarded:  # A power cut took a tensor that had been converted.
                self._discarded -= {name for name, tensor in self._stored.items() if tensor.file.name == shard}
                self._shards.drop(shard)
        self._shards.start(list(self._remaining))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Rows:
        """Read rows of a tensor, once its shard is there."""
        self._shards.wait(self._stored[name].file.name)
        return self._checkpoint.read(name, start, stop)

    def release(self, name: str, start: int, stop: int) -> None:
        """Let the pages of rows start..stop leave this process."""
        self._checkpoint.release(name, start, stop)

    def discard(self, name: str) -> None:
        """Give the disk the space of a tensor back, and a shard that is done."""
        tensor = self._stored[name]
        shard = tensor.file.name
        self._remaining[shard].discard(name)
        if not self._remaining[shard]:
            self._shards.drop(shard)
            return
        self._discarded.add(name)
        with atomic_write(self._folder / STATE_NAME, durable=False) as file:
            file.write(json.dumps({"discarded": sorted(self._discarded)}).encode())
        self._shards.discard(shard, tensor.start, tensor.stop)

    def interrupt(self) -> None:
        """Stop the download; reads that wait for it end with an error."""
        self._shards.stop()

    def close(self) -> None:
        """Stop the download and unmap the files."""
        self._shards.stop()
        self._checkpoint.close()


def fetch_small_files(repository: Repository, folder: Path) -> None:
    """Fetch the small files that `folder` lacks. Raises HubError, ModelError and OSError."""
    for file in repository.small_files:
        if not _is_complete(folder / file.name, file):
            read_small(repository, file, folder)


def _is_complete(path: Path, file: HubFile) -> bool:
    """Return whether a small file of this revision is here; the folder belongs to one revision alone."""
    try:
        return path.stat().st_size == file.size
    except OSError:
        return False


def _shard_files(repository: Repository, folder: Path) -> list[HubFile]:
    """Return the weight files in order. Raises CheckpointError if the index names others than the repository has."""
    if WEIGHTS_INDEX_NAME not in repository.files:
        return [repository.files[SINGLE_WEIGHTS_NAME]]
    index = folder / WEIGHTS_INDEX_NAME
    listed = parse_json_object(read_bounded(index, CheckpointError), str(index), CheckpointError).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{repository.name}: {WEIGHTS_INDEX_NAME} has no weight_map; pull another revision")
    names = sorted({str(name) for name in listed.values()})
    if missing := [name for name in names if name not in repository.files]:
        raise CheckpointError(
            f"{repository.name}: {WEIGHTS_INDEX_NAME} names {missing[0][:200]}, which the repository does not have"
        )
    return [repository.files[name] for name in names]
