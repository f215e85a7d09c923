"""A repository on a model hub: its revision, and its files with sizes and checksums.

Only the client of `huggingface_hub` talks to the hub, here and in `qwchat.store.hub_download`; it is imported when a
model is pulled. HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and the proxy variables mean what they mean there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.safe_files import COPIED_FILES, SINGLE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME
from qwchat.errors import HubError, ModelError, UsageError
from qwchat.store.hub_errors import translated

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

MAX_SMALL_BYTES = 64 << 20
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
    with translated(name, revision):
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
