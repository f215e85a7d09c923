"""A model in one GGUF file, or in the parts of a split one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from quant.errors import CheckpointError
from quant.families import parse_config
from quant.formats.imported import GROUP_SIZE
from quant.gguf_names import find_gguf, parts_of
from quant.model_config import ModelConfig
from quant.safe_files import is_regular_file
from quant.sources.gguf.block_parts import HOMES, float_rows, home_parts
from quant.sources.gguf.config_values import config_values
from quant.sources.gguf.names import gguf_name, hugging_face_name
from quant.sources.gguf.reader import GgufFile, GgufTensor
from quant.sources.gguf.tokenizer_files import tokenizer_files
from quant.sources.source import QuantisedRows, Rows, Source, TensorInfo, describe_tensors, short_name

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_COUNT, _NUMBER, _TENSORS = "split.count", "split.no", "split.tensors.count"


class GgufSource(Source):
    """Opened model. Headers are checked; weights are read from the mapped files when they are used."""

    def __init__(self, path: Path, parts: list[GgufFile]) -> None:
        self._path = path
        self._parts = parts
        self._place = {name: part for part in parts for name in part.tensors}

    @classmethod
    def open(cls, path: str | Path) -> GgufSource:
        """Open the model of a GGUF file, of which it may be any part, or of a folder with the files of one model.

        Raises:
            CheckpointError: a file is missing, damaged or of a kind that is not supported, parts do not belong
                together, or the file has tensors that models of the supported families do not have.
        """
        first = find_gguf(Path(path))
        parts = [GgufFile.open(file) for file in _files(first)]
        _check_parts(parts)
        unknown = sorted(name for part in parts for name in part.tensors if hugging_face_name(name) is None)
        if unknown:
            raise CheckpointError(
                f"{first} contains {describe_tensors(unknown)}, which supported models do not have; "
                "is it the right file?"
            )
        return cls(first, parts)

    @property
    def path(self) -> Path:
        """File, or first part."""
        return self._path

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the headers, the sizes of the files, and a sample of the weights."""
        if len(self._parts) == 1:
            return self._parts[0].fingerprint
        return hashlib.sha256("".join(part.fingerprint for part in self._parts).encode()).hexdigest()

    @cached_property
    def config(self) -> ModelConfig:
        """Hyperparameters from the metadata and the shape of the embedding."""
        return parse_config(self._config_values, str(self._path))

    @cached_property
    def files(self) -> Mapping[str, bytes]:
        """config.json and the files of the tokenizer, made from the metadata."""
        config = json.dumps(self._config_values, indent=2, ensure_ascii=False) + "\n"
        return {"config.json": config.encode(), **tokenizer_files(self._parts[0].metadata, str(self._path))}

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by their Hugging Face names, in file order."""
        return {
            hugging_face_name(name) or name: _describe(tensor)
            for part in self._parts
            for name, tensor in part.tensors.items()
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Rows | QuantisedRows:
        """Read rows `start` to `stop`, exclusive, of a matrix (elements of a vector) into new memory.

        A matrix whose type has a home is read as the parts of that format, all others as float32 rows. Values are not
        checked: NaN and Inf pass through.
        """
        part, stored, tensor = self._find(name)
        count = tensor.shape[0]
        stop = count if stop is None else stop
        if not 0 <= start <= stop <= count:
            raise CheckpointError(f"rows {start}..{stop} of tensor {name} do not exist; it has {count} rows")
        if len(tensor.shape) == 1:
            rows = _read_blocks(part, stored, tensor, 0, 1)
            values = rows.dequantise() if isinstance(rows, QuantisedRows) else rows
            return values[0, start:stop].copy()
        return _read_blocks(part, stored, tensor, start, stop)

    def release(self, name: str, start: int, stop: int) -> None:
        """Let the system drop the pages of rows `start` to `stop`, exclusive. They will not be read again."""
        part, stored, _ = self._find(name)
        part.release(stored, start, stop)

    def close(self) -> None:
        """Unmap the files."""
        for part in self._parts:
            part.close()

    @cached_property
    def _config_values(self) -> dict[str, Any]:
        first = self._parts[0]
        where = str(self._path)
        embedding = self._place.get(_EMBEDDING)
        rows = embedding.tensors[_EMBEDDING].shape[0] if embedding else first.metadata.count("tokenizer.ggml.tokens")
        if rows is None:
            raise CheckpointError(f"{where} has neither {_EMBEDDING} nor tokens; is it a file with a vocabulary only?")
        return config_values(first.metadata, rows, _HEAD not in self._place, where)

    def _find(self, name: str) -> tuple[GgufFile, str, GgufTensor]:
        stored = gguf_name(name) or ""
        if stored not in self._place:
            raise CheckpointError(f"{self._path} has no tensor {short_name(name)}")
        part = self._place[stored]
        return part, stored, part.tensors[stored]


def _describe(tensor: GgufTensor) -> TensorInfo:
    home = HOMES.get(tensor.type.name, "") if len(tensor.shape) == 2 else ""
    return TensorInfo(tensor.shape, tensor.type.name, tensor.nbytes, GROUP_SIZE if home else 0, home)


def _read_blocks(part: GgufFile, name: str, tensor: GgufTensor, start: int, stop: int) -> Rows | QuantisedRows:
    """Return rows as (rows, K) f32, or as parts of the home of their type. A vector is one row."""
    kind, blocks = tensor.type.name, part.blocks(name, start, stop)
    if kind in HOMES:
        return QuantisedRows(HOMES[kind], GROUP_SIZE, home_parts(kind, blocks))
    return float_rows(kind, blocks)


def _files(first: Path) -> list[Path]:
    """Return the files of the model, which must be there if the model is split. Raises CheckpointError."""
    files = parts_of(first)
    missing = [file for file in files if not is_regular_file(file)]
    if missing and len(files) > 1:
        raise CheckpointError(f"{missing[0]} is missing, but the model has {len(files)} parts; download all of them")
    return files


def _check_parts(parts: list[GgufFile]) -> None:
    """Check that the files are the parts of one model. Raises CheckpointError."""
    first, total = parts[0], sum(len(part.tensors) for part in parts)
    for number, part in enumerate(parts):
        count = max(1, _split_value(part, _COUNT, 1))
        if count != len(parts):
            raise CheckpointError(
                f"{part.path} is one of {count} parts, but its name stands for {len(parts)}; "
                "give all parts the names they had"
            )
        if _split_value(part, _NUMBER, 0) != number:
            raise CheckpointError(
                f"{part.path} is part {_split_value(part, _NUMBER, 0) + 1}, but its name stands for part {number + 1}; "
                "give all parts the names they had"
            )
    seen: set[str] = set()
    for part in parts:
        if _split_value(part, _TENSORS, total) != total:
            raise CheckpointError(
                f"{part.path} belongs to a model of {_split_value(part, _TENSORS, total):,} tensors, but the parts "
                f"have {total:,}; download all parts again"
            )
        if twice := sorted(seen & part.tensors.keys()):
            raise CheckpointError(f"{part.path} repeats {describe_tensors(twice)} of another part; download them again")
        seen |= part.tensors.keys()
    if "general.architecture" not in first.metadata:
        raise CheckpointError(f"{first.path} has no general.architecture; it does not describe a model")


def _split_value(part: GgufFile, key: str, default: int) -> int:
    value = part.metadata.get(key, default)
    if type(value) is not int or value < 0:
        raise CheckpointError(f"{part.path}: {key} is not a number of parts or tensors; download the file again")
    return value
