"""A repository on a model hub: its revision, and its files with sizes and checksums.

Only the client of `huggingface_hub` talks to the hub, here and in `qwchat.store.hub_download`; it is imported when a
model is pulled. HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and the proxy variables mean what they mean there.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from qwchat.errors import HubError, UsageError
from qwchat.store.hub_errors import translated
from qwchat.store.hub_files import HubFile, choose_files

_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?"
_REPOSITORY = re.compile(rf"({_PART})/({_PART})")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,254}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Repository:
    """A revision of a repository.

    Attributes:
        name: `owner/name`.
        revision: the commit (hex), whatever branch or tag was asked for.
        licence: as the repository states it, or None.
        files: those that a conversion uses, by name, in the order of the parts of a GGUF model.
    """

    name: str
    revision: str
    licence: str | None
    files: dict[str, HubFile]

    @property
    def small_files(self) -> list[HubFile]:
        """Config, tokenizer and index: everything but the weights."""
        return [file for file in self.files.values() if not file.is_weights]

    @property
    def weight_files(self) -> list[HubFile]:
        """Files with tensors."""
        return [file for file in self.files.values() if file.is_weights]

    @property
    def is_gguf(self) -> bool:
        """Whether the files are those of a GGUF model."""
        return any(file.is_gguf for file in self.files.values())

    @property
    def origin(self) -> dict[str, str]:
        """Repository, revision, licence and file of a GGUF model, which the manifest keeps."""
        licence = {"licence": self.licence} if self.licence else {}
        file = {"file": self.weight_files[0].name} if self.is_gguf else {}
        return {"repository": self.name, "revision": self.revision, **licence, **file}

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over revision and checksums, which decide all bytes of the files."""
        listed = sorted((file.name, file.size, file.sha256 or "") for file in self.files.values())
        return hashlib.sha256(repr((self.name, self.revision, listed)).encode()).hexdigest()


def parse_repository(text: str) -> tuple[str, str]:
    """Split `owner/name[@revision]` into name and revision, "main" if not given. Raises UsageError."""
    name, _, revision = text.partition("@")
    revision = revision or "main"
    if not _REPOSITORY.fullmatch(name) or ".." in text or not _REVISION.fullmatch(revision):
        raise UsageError(f"{text[:200]!r} is not a repository: give OWNER/NAME or OWNER/NAME@REVISION")
    return name, revision


def find_repository(name: str, revision: str = "main", pattern: str | None = None) -> Repository:
    """Ask the hub for a repository.

    Args:
        name: `owner/name`.
        revision: branch, tag or commit.
        pattern: shell pattern for the files of one GGUF model; None for a checkpoint.

    Raises:
        UsageError: `pattern` matches no GGUF model or several.
        ModelError: the repository cannot be used.
        HubError: the hub does not answer.
    """
    with translated(name, revision):
        from huggingface_hub import HfApi

        info = HfApi().model_info(name, revision=revision, files_metadata=True)
    commit = info.sha or ""
    if not _COMMIT.fullmatch(commit):
        raise HubError(f"the hub names no commit for {name}@{revision}; try again later")
    files = choose_files(name, info.siblings or [], pattern)
    licence = getattr(info.card_data, "license", None)
    return Repository(name, commit, licence if isinstance(licence, str) else None, files)
