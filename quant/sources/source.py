"""Protocol of a model to convert, independent of its file format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from quant.model_config import ModelConfig

Rows = NDArray[np.float32]
_CODE_BITS = {"u4": 4, "u8": 8}


@dataclass(frozen=True)
class TensorInfo:
    """Shape and storage type of one tensor of a source.

    Attributes:
        shape: (N, K) = (out, in), or (n,).
        dtype: "bf16", "f16" or "f32" for a tensor that is read as float rows; "u4" or "u8" (the type of its codes and
            zero points) for a matrix that is read as `QuantisedRows`.
        nbytes: bytes in the source.
        group_size: columns per group of a matrix that is read as `QuantisedRows`; otherwise 0.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    group_size: int = 0

    @property
    def code_bits(self) -> int:
        """Bits of the codes and zero points of a matrix that is read as `QuantisedRows`; otherwise 0."""
        return _CODE_BITS.get(self.dtype, 0)


@dataclass(frozen=True, eq=False)
class QuantisedRows:
    """Rows of a matrix that the source stores quantised: value = scale * (code - zero).

    Attributes:
        codes: (rows, K) u8, 0..15 or 0..255.
        scales: (rows, K / group_size) f16. A source with scales of another type returns float rows instead.
        zeros: (rows, K / group_size) u8, in the range of the codes.
        group_size: columns that share a scale and a zero point.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zeros: NDArray[np.uint8]
    group_size: int

    def dequantise(self) -> Rows:
        """Return the exact values, (rows, K) f32. NaN and Inf pass through."""
        zeros, scales = (np.repeat(part, self.group_size, axis=1) for part in (self.zeros, self.scales))
        centred = self.codes.astype(np.float32) - zeros.astype(np.float32)
        with np.errstate(invalid="ignore"):  # a scale may be infinite; the caller checks the values
            return centred * scales.astype(np.float32)


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


def short_name(name: str) -> str:
    """Return a tensor name, cut at 200 characters, for messages."""
    return name if len(name) <= 200 else name[:200] + "…"


def describe_tensors(names: Sequence[str]) -> str:
    """Return "tensor x" or "3 tensors (x, y, …)", for messages."""
    if len(names) == 1:
        return f"tensor {short_name(names[0])}"
    shown = ", ".join(name[:80] for name in names[:3])
    return f"{len(names)} tensors ({shown}{', …' if len(names) > 3 else ''})"
