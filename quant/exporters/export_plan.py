"""Plan of an export: what each tensor becomes, and which file holds it at which offset.

All sizes are known before any weight is read, so files are written in place, tensor by tensor and in chunks of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from quant.formats import PackedTensor
from quant.sources.source import Rows


@dataclass(frozen=True, eq=False)
class EncodedRows:
    """Rows of a tensor as an exporter stores them.

    Attributes:
        parts: one array per entry without `constant`; its bytes are those of the rows in the file.
        values: the values (rows, K) or (n,) that the parts stand for. None: those of the model, exactly.
    """

    parts: tuple[NDArray[Any], ...]
    values: Rows | None = None


Encode = Callable[[PackedTensor], EncodedRows]


@dataclass(frozen=True)
class FileEntry:
    """One tensor of a weight file. The rows of a model's tensor are contiguous in it and in order.

    Attributes:
        name: name in the file.
        dtype: name of the type in the file.
        shape: shape, slowest axis first.
        nbytes: bytes in the file.
        constant: the bytes, if they do not depend on the rows.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    constant: bytes | None = None


@dataclass(frozen=True)
class TensorExport:
    """What one tensor of the model becomes.

    Attributes:
        name: name in the model.
        shape: shape in the model.
        format: its format in the model.
        target: name of the type in the export, for messages.
        entries: its tensors in the file.
        encode: function that encodes any multiple of 16 rows, or the last rows.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    target: str
    entries: tuple[FileEntry, ...]
    encode: Encode = field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return sum(entry.nbytes for entry in self.entries)


@dataclass(frozen=True)
class WeightFile:
    """One weight file.

    Attributes:
        name: file name.
        header: all bytes before the data.
        tensors: plans of its tensors.
        offsets: byte offset of each entry from the start of the file, by name.
        nbytes: size of the file. Bytes that no entry covers are zero.
    """

    name: str
    header: bytes = field(repr=False)
    tensors: tuple[TensorExport, ...]
    offsets: Mapping[str, int]
    nbytes: int


@dataclass(frozen=True)
class ExportPlan:
    """Everything that an export writes.

    Attributes:
        weights: the weight files, in order.
        files: content of the other files, by name.
        notices: what the user should know.
    """

    weights: tuple[WeightFile, ...]
    files: Mapping[str, bytes] = field(repr=False)
    notices: tuple[str, ...] = ()

    @property
    def tensors(self) -> tuple[TensorExport, ...]:
        """Plans of all tensors, in file order."""
        return tuple(tensor for file in self.weights for tensor in file.tensors)


@dataclass(frozen=True)
class ExportSpec:
    """What the user chose.

    Attributes:
        dtype: type of the tensors that are stored unquantised, bf16, f16 or f32. None: that of the exporter.
        bits: 4 or 8: re-quantise matrices that the target cannot store unchanged to so many bits. None: keep their
            precision.
        shard_bytes: most bytes of the tensors of a file; a larger tensor has a file of its own.
    """

    dtype: str | None = None
    bits: int | None = None
    shard_bytes: int = 5_000_000_000


def divide_into_shards(tensors: Sequence[TensorExport], shard_bytes: int) -> list[tuple[TensorExport, ...]]:
    """Divide tensors into files in order, each as full as `shard_bytes` allows."""
    shards: list[list[TensorExport]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return [tuple(shard) for shard in shards]
