"""Matrix of packed codes, independent of the layout of its file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import CheckpointError
from quant.formats.dense import bf16_to_f32
from quant.formats.linear import LIN4, LIN8
from quant.sources.huggingface import HuggingFaceCheckpoint
from quant.sources.packed.words import row_blocks
from quant.sources.source import QuantisedRows, Rows, TensorInfo, short_name

HOMES = {fmt.bits: fmt for fmt in (LIN4, LIN8)}
"""Formats that store the codes unchanged, by bits per code."""
FLOATS = ("F16", "BF16", "F32")


class PackedMatrix(ABC):
    """Matrix (N, K) of integer codes: value = scale * (code - zero), where scale and zero belong to a group of columns.

    Args:
        checkpoint: checkpoint with the tensors of the matrix.
        stored_names: their names.
        shape: (N, K).
        bits: bits per code, 4 or 8.
        group_size: columns per group. The last group may have fewer.
        symmetric: whether every zero point is the middle of the code range.
        column_groups: group of each column (K,), if that is not column // group_size.
    """

    def __init__(
        self,
        checkpoint: HuggingFaceCheckpoint,
        stored_names: Sequence[str],
        *,
        shape: tuple[int, int],
        bits: int,
        group_size: int,
        symmetric: bool,
        column_groups: NDArray[np.int32] | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.stored_names = tuple(stored_names)
        self.shape = shape
        self.bits = bits
        self.symmetric = symmetric
        self._group_size = group_size
        self._column_groups = column_groups
        self._home_group_size = self._find_home_group_size()

    @abstractmethod
    def codes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the codes of rows `start` to `stop`, exclusive, (rows, K)."""

    @abstractmethod
    def zeros(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the zero points of rows, (rows, G). Only for a matrix that is not symmetric."""

    @abstractmethod
    def stored_scales(self) -> NDArray[Any]:
        """Return a view of the scales in the file, (N, G); bf16 numbers are u2."""

    @abstractmethod
    def release(self, start: int, stop: int) -> None:
        """Release the memory of rows `start` to `stop`, exclusive."""

    @property
    def obstacle(self) -> str:
        """Reason why no format stores the codes unchanged, for messages. "" if one does."""
        if self._home_group_size:
            return "" if self._scales_fit else "float16 does not hold the scales exactly"
        if self._column_groups is not None:
            return "the groups of columns are in activation order"
        return f"no format has groups of {self._group_size} in {self.shape[1]:,} columns"

    @cached_property
    def info(self) -> TensorInfo:
        """Shape, type and home of the matrix."""
        nbytes = sum(self.checkpoint.stored[name].nbytes for name in self.stored_names)
        info = TensorInfo(self.shape, f"int{self.bits}", nbytes)
        if self.obstacle:
            return info
        home = HOMES[self.bits].name
        return TensorInfo(self.shape, info.dtype, nbytes, self._home_group_size, home, zeros=not self.symmetric)

    def read(self, start: int, stop: int) -> Rows | QuantisedRows:
        """Return rows `start` to `stop`, exclusive: quantised if the matrix has a home."""
        codes, scales = self.codes(start, stop), _as_float(self.stored_scales()[start:stop])
        zeros = None if self.symmetric else self.zeros(start, stop)
        info, groups = self.info, self._groups_of_columns()
        if info.home:
            groups = groups[:: info.group_size]
            parts: dict[str, NDArray[Any]] = {"codes": codes, "scales": scales[:, groups].astype(np.float16)}
            if zeros is not None:
                parts["zeros"] = zeros[:, groups]
            return QuantisedRows(info.home, info.group_size, parts)
        values = codes.astype(np.float32)
        values -= np.float32(HOMES[self.bits].zero) if zeros is None else zeros.astype(np.float32)[:, groups]
        with np.errstate(invalid="ignore", over="ignore"):  # the caller checks whether the values are finite
            values *= scales.astype(np.float32)[:, groups]
        return values

    def _groups_of_columns(self) -> NDArray[np.integer]:
        """Return the group of each column, (K,)."""
        return np.arange(self.shape[1]) // self._group_size if self._column_groups is None else self._column_groups

    def _find_home_group_size(self) -> int:
        """Return the largest group size of the home whose groups do not straddle those of the source, 0 without one."""
        columns, groups = self.shape[1], self._groups_of_columns()
        for size in sorted(HOMES[self.bits].group_sizes, reverse=True):
            if columns % size == 0 and bool((groups.reshape(-1, size) == groups[::size, None]).all()):
                return size
        return 0

    @cached_property
    def _scales_fit(self) -> bool:
        """Whether float16 holds every scale exactly. Scales that are not finite are left to the caller's checks."""
        stored = self.stored_scales()
        if stored.dtype == np.float16:
            return True
        for block in map(_as_float, row_blocks(stored)):
            with np.errstate(over="ignore"):
                if not np.array_equal(block.astype(np.float16).astype(np.float32), block):
                    return False
        return True


def expect_tensor(
    checkpoint: HuggingFaceCheckpoint, name: str, types: Sequence[str], shape: Sequence[int | None]
) -> tuple[int, ...]:
    """Return the shape of tensor `name`.

    Args:
        checkpoint: checkpoint that must contain it.
        name: name of the tensor.
        types: safetensors types that it may have.
        shape: expected shape. None stands for any size.

    Raises:
        CheckpointError: the tensor is missing, or has another type or shape.
    """
    stored = checkpoint.stored.get(name)
    where = f"{checkpoint.path}: tensor {short_name(name)}"
    if stored is None:
        raise CheckpointError(f"{where} is missing; download the checkpoint again")
    if stored.dtype not in types:
        raise CheckpointError(f"{where} has dtype {stored.dtype}; expected {' or '.join(types)}")
    fits = len(stored.shape) == len(shape) and all(
        wanted in (None, size) for wanted, size in zip(shape, stored.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise CheckpointError(
            f"{where} has shape {list(stored.shape)}; its quantization_config and the other tensors of the module "
            f"need [{wanted}]"
        )
    return stored.shape


def read_column_groups(
    checkpoint: HuggingFaceCheckpoint, name: str, columns: int, group_size: int, groups: int
) -> NDArray[np.int32] | None:
    """Return the group of each column in tensor `name`, or None if that is column // group_size.

    Raises CheckpointError if a number is not a group.
    """
    expect_tensor(checkpoint, name, ("I32", "I64"), (columns,))
    column_groups = checkpoint.raw(name)
    if np.array_equal(column_groups, np.arange(columns) // group_size):
        return None
    if column_groups.min() < 0 or column_groups.max() >= groups:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {short_name(name)} names groups other than 0..{groups - 1}; "
            "download the checkpoint again"
        )
    return column_groups.astype(np.int32)


def _as_float(stored: NDArray[Any]) -> NDArray[Any]:
    """Return bf16 numbers as f32. Return other arrays unchanged."""
    return bf16_to_f32(np.ascontiguousarray(stored)) if stored.dtype == np.uint16 else stored
