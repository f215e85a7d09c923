"""Protocol of a model to convert, independent of its file format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from quant.formats import dequantise_parts
from quant.model_config import ModelConfig

Rows = NDArray[np.float32]
FLOAT_TYPES = ("bf16", "f16", "f32")
"""Storage types of tensors that are not quantised."""


@dataclass(frozen=True)
class TensorInfo:
    """Shape and storage type of one tensor of a source.

    Attributes:
        shape: (N, K) = (out, in), or (n,).
        dtype: one of `FLOAT_TYPES`, or the source's own name of a quantised type, such as "q6_k" or "int4".
        nbytes: bytes in the source.
        group_size: columns per group of a matrix that has a home; otherwise 0.
        home: name of the packed format that stores the source's codes unchanged. Such a matrix is read as
            `QuantisedRows`, every other tensor as float rows. "" for a tensor without a home.
        zeros: whether the home stores zero points.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    group_size: int = 0
    home: str = ""
    zeros: bool = False

    @property
    def quantised(self) -> bool:
        """Whether the source stores the tensor quantised."""
        return bool(self.home) or self.dtype not in FLOAT_TYPES


@dataclass(frozen=True, eq=False)
class QuantisedRows:
    """Rows of a matrix that the source stores quantised, as the plain parts of the format that is its home.

    Attributes:
        format: name of the home.
        group_size: columns that share a scale, G.
        parts: arrays with one row per row of the matrix, of the types that the format stores (`quant.formats.integer`):
            "codes" (rows, K) u8, "scales" (rows, K/G), and further parts such as "zeros" (rows, K/G) u8.
    """

    format: str
    group_size: int
    parts: Mapping[str, NDArray[Any]]

    def dequantise(self) -> Rows:
        """Return the exact values, (rows, K) f32. NaN and Inf pass through."""
        return dequantise_parts(self.format, self.parts, self.group_size)


class Source(Protocol):
    """Model to convert: a folder or a single file. Threads may share it.

    Opening a source reads everything except the weights. Tensors have the names of their model family, even if the
    files use other names. Every member raises CheckpointError for missing, damaged, contradictory or unsupported data.
    """

    @property
    def path(self) -> Path:
        """Folder or file, for messages."""

    @property
    def name(self) -> str:
        """Name of the source in the manifest."""
        return self.path.resolve().name

    @property
    def origin(self) -> Mapping[str, str]:
        """Further entries of the source in the manifest, each one line: "repository", "revision", "licence"."""
        return {}

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that the result depends on, but only of a sample of the weights."""

    @property
    def config(self) -> ModelConfig:
        """Hyperparameters of the model."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """Content of the small files of the model folder, a subset of `quant.safe_files.COPIED_FILES`.

        config.json and tokenizer.json are always present. config.json has the Hugging Face form and the values of
        `config`. A source without such files creates their content.
        """

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in file order."""

    @property
    def notices(self) -> Sequence[str]:
        """Texts to show to the user before a conversion, one line each."""
        return ()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Rows | QuantisedRows:
        """Read rows `start` to `stop`, exclusive, of a matrix (elements of a vector) into new memory.

        Values are not checked: NaN and Inf pass through.
        """

    def release(self, name: str, start: int, stop: int) -> None:
        """Release the memory of rows `start` to `stop`, exclusive. They will not be read again."""

    def announce(self, names: Sequence[str]) -> None:
        """Announce the tensors that will be read, in order, so that the source can fetch them ahead of time."""
        return

    def discard(self, name: str) -> None:
        """Release tensor `name`, which has been stored. No later attempt will read it again."""
        return

    def interrupt(self) -> None:
        """Make reads that wait for data fail. Called before a conversion is abandoned."""
        return

    def close(self) -> None:
        """Close the files."""

    @property
    def quantised(self) -> bool:
        """Whether any tensor is quantised."""
        return any(tensor.quantised for tensor in self.tensors.values())

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors in the source."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def __enter__(self) -> Self:
        """Return the source. The end of the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the source."""
        self.close()


def short_name(name: str, length: int = 200) -> str:
    """Return a tensor name for messages: on one line, cut at `length` characters."""
    shown = name[:length] if name[:length].isprintable() else repr(name[:length])[1:-1]
    return shown if len(name) <= length else shown + "…"


def describe_tensors(names: Sequence[str]) -> str:
    """Return "tensor x" or "3 tensors (x, y, …)", for messages."""
    if len(names) == 1:
        return f"tensor {short_name(names[0])}"
    shown = ", ".join(short_name(name, 80) for name in names[:3])
    return f"{len(names)} tensors ({shown}{', …' if len(names) > 3 else ''})"
