"""Which files of a repository a pull needs: those of a checkpoint, or those of one GGUF model."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from quant.gguf_names import models_in, parse_name
from quant.safe_files import COPIED_FILES, MAX_NAME_BYTES, SINGLE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME
from quant.units import data_size
from quant.wording import ArgumentMessage, SuggestedArgument
from qwchat.errors import HubError, ModelError, UsageError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

MAX_SMALL_BYTES = 64 << 20
_MAX_LISTED = 40
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_USUAL_TYPE = "q4_k_m"  # what most people take
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubFile:
    """One file of a repository.

    Attributes:
        name: its path in the repository. Files of a checkpoint are not in folders, those of a GGUF model may be.
        size: bytes.
        sha256: checksum (hex) of a large file; None for a small one, which the hub keeps in git.
    """

    name: str
    size: int
    sha256: str | None

    @property
    def local_name(self) -> str:
        """Name of the file on this machine, without folders."""
        return PurePosixPath(self.name).name

    @property
    def is_gguf(self) -> bool:
        """Whether it is a file of a GGUF model."""
        return parse_name(self.local_name) is not None

    @property
    def is_weights(self) -> bool:
        """Whether it holds tensors."""
        return self.is_gguf or self.name.endswith(".safetensors")


def choose_files(repository: str, siblings: Sequence[RepoSibling], pattern: str | None) -> dict[str, HubFile]:
    """Return the files that a pull needs, by name.

    Args:
        repository: name of the repository, for messages.
        siblings: all its files, as the hub states them.
        pattern: shell pattern for the files of one GGUF model, in any case; with a slash it matches the whole path.
            None: a checkpoint is pulled.

    Raises:
        UsageError: `pattern` matches no GGUF model or several.
        ModelError: the repository has no checkpoint, or a file of it cannot be used.
        HubError: the hub states no size or checksum.
    """
    models = _gguf_models(siblings)
    wanted = _checkpoint_files(siblings) if pattern is None else models[_match(repository, siblings, models, pattern)]
    files = {file.name: file for file in (_checked(each, repository) for each in siblings if each.rfilename in wanted)}
    if pattern is None:
        _check_checkpoint(repository, siblings, files, models)
    elif missing := [name for name in wanted if name not in files]:
        raise ModelError(f"{repository} does not have {missing[0][:200]}, a part of the model: pull another file")
    return files


def _checkpoint_files(siblings: Sequence[RepoSibling]) -> set[str]:
    """Return the names of the files that a conversion of a checkpoint reads."""
    names = [each.rfilename for each in siblings]
    used = (*COPIED_FILES, WEIGHTS_INDEX_NAME)
    return {name for name in names if not set(name) & set("/\\") and (name in used or name.endswith(".safetensors"))}


def _gguf_models(siblings: Sequence[RepoSibling]) -> dict[str, list[str]]:
    """Return the first file of each GGUF model -> its files. Files with unsafe names are left out."""
    return models_in(each.rfilename for each in siblings if _is_safe(each.rfilename))


def _is_safe(name: str) -> bool:
    """Return whether each component of a path can be the name of a file that is not hidden."""
    return name.isprintable() and all(
        part and not part.startswith(".") and "\\" not in part and len(part.encode(errors="replace")) <= MAX_NAME_BYTES
        for part in name.split("/")
    )


def _match(repository: str, siblings: Sequence[RepoSibling], models: dict[str, list[str]], pattern: str) -> str:
    """Return the first file of the only model that `pattern` matches. Raises UsageError."""

    def matches(name: str) -> bool:
        text = name if "/" in pattern else PurePosixPath(name).name
        return fnmatchcase(text.lower(), pattern.lower())

    named = [first for first, parts in models.items() if pattern in parts]  # Such as a name with [ in it.
    found = named or [first for first, parts in models.items() if any(map(matches, parts))]
    if len(found) == 1:
        return found[0]
    if not models:
        raise UsageError(f"{repository} has no GGUF file: pull it without a pattern, or pull another repository")
    if not found:
        problem = f"{pattern[:200]!r} matches no GGUF file of {repository}, which has"
        raise UsageError(f"{problem} {_listed(siblings, models, list(models))}: give another pattern")
    listing = _listed(siblings, models, found)
    raise UsageError(f"{pattern[:200]!r} matches {len(found)} models of {repository}: {listing}; give a longer pattern")


def _listed(siblings: Sequence[RepoSibling], models: dict[str, list[str]], firsts: Sequence[str]) -> str:
    """Return models with their sizes for a message: "x-q4_0.gguf (4.4 GB), y-00001-of-00002.gguf (2 parts, 9.1 GB)"."""
    sizes = {each.rfilename: each.size for each in siblings}
    texts = []
    for first in firsts[:_MAX_LISTED]:
        parts = models[first]
        size = data_size(sum(sizes.get(name) or 0 for name in parts))
        texts.append(f"{first[:200]} ({f'{len(parts)} parts, ' if len(parts) > 1 else ''}{size})")
    return ", ".join([*texts, *(["…"] if len(firsts) > _MAX_LISTED else [])])


def _checked(sibling: RepoSibling, repository: str) -> HubFile:
    """Return a file as the hub states it. Raises HubError and ModelError if size or checksum cannot be used."""
    name, size = sibling.rfilename, sibling.size
    checksum = sibling.lfs.sha256 if sibling.lfs is not None else None
    if not isinstance(size, int) or size < 0 or (checksum is not None and not _SHA256.fullmatch(checksum)):
        raise HubError(f"{repository}: the hub states no usable size or checksum of {name}; try again later")
    file = HubFile(name, size, checksum)
    if not file.is_weights and size > MAX_SMALL_BYTES:
        raise ModelError(
            f"{repository}: {name} has {size:,} bytes, more than {MAX_SMALL_BYTES:,}; pull another repository"
        )
    return file


def _check_checkpoint(
    repository: str, siblings: Sequence[RepoSibling], files: dict[str, HubFile], models: dict[str, list[str]]
) -> None:
    """Check that `files` are a whole checkpoint. Raises ModelError, which names what else the repository has."""
    if WEIGHTS_INDEX_NAME not in files and SINGLE_WEIGHTS_NAME not in files:
        if models:
            usual = [first for first in models if _USUAL_TYPE in first.lower()]
            example = PurePosixPath((usual or list(models))[0]).name
            only = f"{repository} has GGUF files and no checkpoint: {_listed(siblings, models, list(models))}"
            pull = f"; choose one with qwchat pull {repository} "
            raise ModelError(ArgumentMessage(only, pull, SuggestedArgument("file", shlex.quote(example))))
        if any(each.rfilename.endswith(_PICKLES) for each in siblings):
            raise ModelError(
                f"{repository} has pickled weights alone, which can run code: pull one with safetensors files"
            )
        raise ModelError(
            f"{repository} has no {SINGLE_WEIGHTS_NAME} and no {WEIGHTS_INDEX_NAME}: pull a repository of a checkpoint"
        )
    for needed in ("config.json", "tokenizer.json"):
        if needed not in files:
            raise ModelError(f"{repository} has no {needed}: pull a repository of a whole checkpoint")
