"""File names of GGUF models: parts of split files, and the models of a folder or a repository.

llama.cpp names the parts of a split model `NAME-00001-of-00003.gguf`. A path stands for its whole model, whichever
part it names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from quant.errors import CheckpointError
from quant.safe_files import is_regular_file

_NAME = re.compile(r"(.+?)(?:-([0-9]{5})-of-([0-9]{5}))?(\.gguf)", re.DOTALL | re.IGNORECASE)
_MAX_LISTED, _MAX_SHOWN = 10, 100


@dataclass(frozen=True)
class GgufName:
    """Name of a GGUF file.

    Attributes:
        stem: name of the model: without suffix and part number.
        number: number of the part, from 1; 0 if the model is not split.
        count: number of parts; 0 if the model is not split.
        suffix: `.gguf` in the letters of the file.
    """

    stem: str
    number: int
    count: int
    suffix: str

    @property
    def parts(self) -> list[str]:
        """Names of all files of the model, in order."""
        if not self.count:
            return [f"{self.stem}{self.suffix}"]
        return [f"{self.stem}-{number:05d}-of-{self.count:05d}{self.suffix}" for number in range(1, self.count + 1)]


def parse_name(name: str) -> GgufName | None:
    """Return the parts of a file name, or None if it does not end with `.gguf` in any case."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    stem, number, count, suffix = found.groups()
    if number is None:
        return GgufName(stem, 0, 0, suffix)
    if not 1 <= int(number) <= int(count):
        return GgufName(f"{stem}-{number}-of-{count}", 0, 0, suffix)
    return GgufName(stem, int(number), int(count), suffix)


def part_names(name: str) -> list[str]:
    """Return the names of all files of the model that the file `name` belongs to, in order, in the folder of `name`."""
    folder, slash, file = name.rpartition("/")
    parsed = parse_name(file)
    return [name] if parsed is None else [f"{folder}{slash}{part}" for part in parsed.parts]


def parts_of(path: Path) -> list[Path]:
    """Return the files of the model that the file `path` belongs to, in order. Some may be missing."""
    return [path.with_name(name) for name in part_names(path.name)]


def models_in(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the names of GGUF files, with or without folders, by model. Other names are ignored.

    Returns:
        The name of the first file of each model -> the names of all its files, some of which may not be in `names`.
    """
    grouped = (part_names(name) for name in sorted(names) if parse_name(PurePosixPath(name).name) is not None)
    return {parts[0]: parts for parts in grouped}


def find_gguf(path: Path) -> Path:
    """Return the first file of the model that `path` means: a GGUF file, or a folder with the files of one model.

    Raises:
        CheckpointError: `path` is a folder with no model or with several, or it cannot be read. The message lists the
            models.
    """
    if not path.is_dir():
        return parts_of(path)[0]
    try:
        models = gguf_models(path)
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read: {exc.strerror}") from exc
    if len(models) == 1:
        return models[0]
    if not models:
        raise CheckpointError(f"{path} contains no GGUF file; give another folder")
    raise CheckpointError(
        f"{path} contains {len(models)} GGUF models ({listed(model.name for model in models)}); give one of the files"
    )


def gguf_models(folder: Path) -> list[Path]:
    """Return the first file of each GGUF model in `folder`, sorted by name. Raises OSError."""
    names = [entry.name for entry in folder.iterdir() if parse_name(entry.name) is not None and is_regular_file(entry)]
    return [folder / name for name in models_in(names)]


def listed(names: Iterable[str]) -> str:
    """Return names for a message: "a.gguf, b.gguf", at most ten of them."""
    texts = [name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}…" for name in names]
    return ", ".join(texts[:_MAX_LISTED] + (["…"] if len(texts) > _MAX_LISTED else []))
