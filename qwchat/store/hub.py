"""A repository on a model hub: its revision, its files with sizes and checksums, and their bytes.

Only `huggingface_hub` talks to the hub; it is imported here, when a model is pulled. HF_ENDPOINT, HF_TOKEN,
HF_HUB_OFFLINE and the proxy variables mean what they mean there. Its internals that are relied on stay in this module,
and tests/test_huggingface_hub.py checks them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from quant.safe_files import COPIED_FILES, SINGLE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME
from qwchat.errors import HubError, ModelError, UsageError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

MAX_SMALL_BYTES = 64 << 20
_PIECE_BYTES = 1 << 16  # A broken connection or a kill loses at most one piece; the client's own are 10 MiB.
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?"
_REPOSITORY = re.compile(rf"({_PART})/({_PART})")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,254}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubFile:
    """One file of a repository.

    Attributes:
        name: its path in the repository; files in folders are not used.
        size: bytes.
        sha256: checksum (hex) of a large file; None for a small one, which the hub keeps in git.
    """

    name: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class Repository:
    """A revision of a repository.

    Attributes:
        name: `owner/name`.
        revision: the commit (hex), whatever branch or tag was asked for.
        licence: as the repository states it, or None.
        files: those that a conversion uses, by name.
    """

    name: str
    revision: str
    licence: str | None
    files: dict[str, HubFile]

    @property
    def small_files(self) -> list[HubFile]:
        """Config, tokenizer and index: everything but the weights."""
        return [file for file in self.files.values() if not file.name.endswith(".safetensors")]


def parse_repository(text: str) -> tuple[str, str]:
    """Split `owner/name[@revision]` into name and revision, "main" if not given. Raises UsageError."""
    name, _, revision = text.partition("@")
    revision = revision or "main"
    if not _REPOSITORY.fullmatch(name) or ".." in text or not _REVISION.fullmatch(revision):
        raise UsageError(f"{text[:200]!r} is not a repository: give OWNER/NAME or OWNER/NAME@REVISION")
    return name, revision


def find_repository(name: str, revision: str = "main") -> Repository:
    """Ask the hub for a repository. Raises ModelError (it cannot be used) and HubError (the hub does not answer)."""
    with _translated(name, revision):
        from huggingface_hub import HfApi

        info = HfApi().model_info(name, revision=revision, files_metadata=True)
    commit = info.sha or ""
    if not _COMMIT.fullmatch(commit):
        raise HubError(f"the hub names no commit for {name}@{revision}; try again later")
    files = _used_files(info, name)
    licence = getattr(info.card_data, "license", None)
    return Repository(name, commit, licence if isinstance(licence, str) else None, files)


def _used_files(info: ModelInfo, name: str) -> dict[str, HubFile]:
    files: dict[str, HubFile] = {}
    names = [sibling.rfilename for sibling in info.siblings or []]
    for sibling in info.siblings or []:
        file = sibling.rfilename
        if (
            "/" in file
            or "\\" in file
            or not (file in COPIED_FILES or file == WEIGHTS_INDEX_NAME or file.endswith(".safetensors"))
        ):
            continue
        size = sibling.size
        checksum = sibling.lfs.sha256 if sibling.lfs is not None else None
        if not isinstance(size, int) or size < 0 or (checksum is not None and not _SHA256.fullmatch(checksum)):
            raise HubError(f"{name}: the hub states no usable size or checksum of {file}; try again later")
        if not file.endswith(".safetensors") and size > MAX_SMALL_BYTES:
            raise ModelError(
                f"{name}: {file} has {size:,} bytes, more than {MAX_SMALL_BYTES:,}; pull another repository"
            )
        files[file] = HubFile(file, size, checksum)
    if WEIGHTS_INDEX_NAME not in files and SINGLE_WEIGHTS_NAME not in files:
        if any(file.endswith(_PICKLES) for file in names):
            raise ModelError(f"{name} has pickled weights alone, which can run code: pull one with safetensors files")
        raise ModelError(
            f"{name} has no {SINGLE_WEIGHTS_NAME} and no {WEIGHTS_INDEX_NAME}: pull a repository of a checkpoint"
        )
    for needed in ("config.json", "tokenizer.json"):
        if needed not in files:
            raise ModelError(f"{name} has no {needed}: pull a repository of a whole checkpoint")
    return files


class Sink(Protocol):
    """Where downloaded bytes go."""

    def write(self, data: bytes) -> int:
        """Write bytes at the position."""

    def seek(self, position: int) -> int:
        """Go to a position."""

    def tell(self) -> int:
        """Return the position."""

    def truncate(self) -> int:
        """Cut off what follows the position."""


def download(repository: Repository, file: HubFile, stream: Sink, start: int, stop: int | None = None) -> None:
    """Write bytes start..stop of a file (to its end by default) to `stream`; what `stream.write` raises stops it.

    Broken connections are taken up again where they broke. Raises HubError and ModelError.
    """
    with _translated(repository.name, repository.revision, file.name):
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers, disable_progress_bars
        from huggingface_hub.utils.logging import set_verbosity_error

        disable_progress_bars()
        set_verbosity_error()  # It reports each broken connection, which it then takes up again.
        constants.DOWNLOAD_CHUNK_SIZE = _PIECE_BYTES
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if stop is not None:
            headers["Range"] = f"bytes=0-{stop - 1}"
        url = hf_hub_url(repository.name, file.name, revision=repository.revision)
        http_get(
            url,
            cast("BinaryIO", stream),
            resume_size=start,
            headers=headers,
            expected_size=file.size if stop is None else stop,
        )


def read_small(repository: Repository, file: HubFile, folder: Path) -> None:
    """Download a small file into `folder`, replacing what is there. Raises HubError and ModelError."""
    target = folder / file.name
    part = target.with_name(f".{file.name}.part")
    with part.open("wb") as stream:
        download(repository, file, _Bounded(stream, file.size), 0)
    part.replace(target)


class _Bounded:
    """A stream that refuses more bytes than the hub announced."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._left = stream, size

    def write(self, data: bytes) -> int:
        """Write `data`. Raises HubError if it is more than announced."""
        self._left -= len(data)
        if self._left < 0:
            raise HubError("the hub sent more bytes than it announced; try again later")
        return self._stream.write(data)

    def seek(self, position: int) -> int:
        """Go to a position; called when the hub sends the file from its start."""
        self._left += self._stream.tell() - position
        return self._stream.seek(position)

    def tell(self) -> int:
        """Return the position."""
        return self._stream.tell()

    def truncate(self) -> int:
        """Cut off what follows the position."""
        return self._stream.truncate()


@contextmanager
def _translated(name: str, revision: str, file: str | None = None) -> Iterator[None]:
    """Turn errors of the hub's client into one line of ours."""
    import httpx2
    from huggingface_hub import errors

    where = f"{name}@{revision}" if file is None else f"{name}: {file}"
    try:
        yield
    except errors.GatedRepoError as error:
        from huggingface_hub.constants import ENDPOINT

        raise ModelError(
            f"{name} asks for consent to its licence: accept it at {ENDPOINT}/{name}, then set HF_TOKEN and pull again"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(f"there is no repository {name}, or HF_TOKEN does not open it: check the name") from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{name} has no revision {revision}: give a branch, a tag or a commit") from error
    except errors.EntryNotFoundError as error:
        raise ModelError(f"{where} is not there any more: pull again") from error
    except errors.OfflineModeIsEnabled as error:
        raise HubError("HF_HUB_OFFLINE is set: unset it to pull a model") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise HubError(f"{where}: the hub answers with status {status}; pull again later to resume") from error
    except httpx2.HTTPError as error:
        raise HubError(f"{where}: the connection failed ({type(error).__name__}); pull again to resume") from error
    except OSError as error:
        if isinstance(next(iter(error.args), None), int):  # Of the operating system.
            raise
        # The length is not what was announced.
        raise HubError(f"{where}: {str(error).splitlines()[0][:200]}; pull again to resume") from error
