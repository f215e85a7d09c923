"""What is converted, whatever its files look like: one protocol for every kind of source."""

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
    """How a source stores one tensor.

    Attributes:
        shape: (N, K) = (out, in), or (n,).
        dtype: "bf16", "f16" or "f32" for a tensor that is read as rows; "u4" or "u8", by its codes and zero points, for
            a matrix that is read as `QuantisedRows`.
        nbytes: bytes in the source.
        group_size: columns per group of a matrix that is read as `QuantisedRows`, else 0.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    group_size: int = 0

    @property
    def code_bits(self) -> int:
        """Bits of the codes and zero points of a matrix that is read as `QuantisedRows`, else 0."""
        return _CODE_BITS.get(self.dtype, 0)


@dataclass(frozen=True, eq=False)
class QuantisedRows:
    """Rows of a matrix that is quantised already: value = scale * (code - zero).

    Attributes:
        codes: (rows, K) u8, 0..15 or 0..255.
        scales: (rows, K / group_size) f16. A source whose scales are of another type gives rows.
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
        with np.errstate(invalid="ignore"):  # An infinite scale; values are not checked here.
            return centred * scales.astype(np.float32)


class Source(Protocol):
    """A model that is to be converted. Opening one reads everything but the weights; threads may share it.

    A source may be a folder or a single file. Tensors have the names of their model family, whatever the files call
    them. Every member raises CheckpointError for what is missing, damaged, contradictory or unsupported.
    """

    @property
    def path(self) -> Path:
        """The folder or file, for messages."""

    @property
    def name(self) -> str:
        """What the manifest calls the source."""
        return self.path.resolve().name

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over all that decides the result of a conversion; of the weights, over a sample."""

    @property
    def config(self) -> ModelConfig:
        """The numbers of the model."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """Content of the small files of the model folder, among `quant.safe_files.COPIED_FILES`.

        config.json and tokenizer.json are there. config.json, in the form of Hugging Face, says what `config` says:
        a source without such files makes them.
        """

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name, in the order of the files."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Rows | QuantisedRows:
        """Read rows start..stop of tensor `name` (elements, if it is a vector) into new memory.

        Values are not checked: NaN and Inf pass through.
        """

    def release(self, name: str, start: int, stop: int) -> None:
        """Say that rows start..stop of tensor `name` will not be read again, so that their memory may go."""

    def close(self) -> None:
        """Release the files."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def __enter__(self) -> Self:
        """Return the source, which the end of the block closes."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the source."""
        self.close()


def short_name(name: str) -> str:
    """Return the beginning of a tensor's name, for messages."""
    return name if len(name) <= 200 else name[:200] + "…"


def describe_tensors(names: Sequence[str]) -> str:
    """Return "tensor x" or "3 tensors (x, y, …)", for messages."""
    if len(names) == 1:
        return f"tensor {short_name(names[0])}"
    shown = ", ".join(name[:80] for name in names[:3])
    return f"{len(names)} tensors ({shown}{', …' if len(names) > 3 else ''})"
