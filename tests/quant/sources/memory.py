"""Source without files: config and tensors are in memory, some of them quantised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quant.families import parse_config
from quant.model_config import ModelConfig
from quant.sources import QuantisedRows, Rows, Source, TensorInfo


class MemorySource(Source):
    """Model made of arrays. It creates config and tokenizer files from values, like a single-file source."""

    def __init__(
        self,
        config: Mapping[str, Any],
        contents: Mapping[str, Rows | QuantisedRows],
        name: str = "memory",
        dtypes: Mapping[str, str] | None = None,
    ) -> None:
        self._config = config
        self._contents = contents
        self._name = name
        self._dtypes = dtypes or {}
        self.reads: list[tuple[str, int, int]] = []
        self.closed = False

    @property
    def path(self) -> Path:
        """Path that does not exist."""
        return Path(self._name)

    @property
    def fingerprint(self) -> str:
        """Constant fingerprint."""
        return "0" * 64

    @property
    def config(self) -> ModelConfig:
        """Hyperparameters of the model."""
        return parse_config(self._config)

    @property
    def files(self) -> Mapping[str, bytes]:
        """Content of the two files that every model folder has."""
        return {"config.json": json.dumps(self._config).encode(), "tokenizer.json": b"{}"}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Shape and type of each array; `dtypes` replaces the type of some."""
        found = {name: _info(content) for name, content in self._contents.items()}
        return found | {name: replace(found[name], dtype=dtype) for name, dtype in self._dtypes.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Rows | QuantisedRows:
        """Return a copy of rows of an array."""
        content, rows = self._contents[name], slice(start, stop)
        self.reads.append((name, start, _info(content).shape[0] if stop is None else stop))
        if isinstance(content, QuantisedRows):
            parts = {name: part[rows].copy() for name, part in content.parts.items()}
            return QuantisedRows(content.format, content.group_size, parts)
        return content[rows].copy()

    def release(self, name: str, start: int, stop: int) -> None:
        """Do nothing: the arrays belong to the caller."""

    def close(self) -> None:
        """Record the call."""
        self.closed = True


def grouped(shape: tuple[int, int], bits: int, group_size: int, random: np.random.Generator) -> QuantisedRows:
    """Return random codes and zero points of all values of `bits`, with random scales."""
    groups = (shape[0], shape[1] // group_size)
    codes, zeros = (random.integers(0, 1 << bits, size, dtype=np.uint8) for size in (shape, groups))
    codes.flat[0] = (1 << bits) - 1
    scales = random.uniform(1e-3, 1e-1, groups).astype(np.float16)
    return QuantisedRows(f"lin{bits}", group_size, {"codes": codes, "scales": scales, "zeros": zeros})


def _info(content: Rows | QuantisedRows) -> TensorInfo:
    if isinstance(content, QuantisedRows):
        nbytes = sum(part.nbytes for part in content.parts.values())
        shape, zeros = content.parts["codes"].shape, "zeros" in content.parts
        return TensorInfo(shape, "packed", nbytes, content.group_size, content.format, zeros)
    return TensorInfo(content.shape, "f32", content.nbytes)
