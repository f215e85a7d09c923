"""Encode the rows of tensors: read a chunk from the source, check its values, quantise it or keep its codes."""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant.errors import CheckpointError, FormatError
from quant.formats import GroupedFormat, PackedTensor, find_format
from quant.policy import TensorPlan
from quant.quantisers import feedback, quantise
from quant.quantisers.feedback_factor import Factor
from quant.sources import QuantisedRows, Source

MAX_WEIGHT = np.float32(1e30)


@dataclass(frozen=True)
class EncodedChunk:
    """Quantised rows of one tensor, with the squared error and the sum of squares of each row."""

    packed: PackedTensor
    squared_errors: NDArray[np.float64]
    squares: NDArray[np.float64]


def encode_chunk(
    source: Source, tensor: TensorPlan, start: int, stop: int, future: Future[Factor | None] | None = None
) -> EncodedChunk:
    """Encode rows start..stop of a tensor.

    Args:
        source: where the rows are read.
        tensor: plan of the tensor.
        start: first row.
        stop: row after the last one.
        future: factor of the inputs of a matrix that is encoded with error feedback; None for any other tensor.

    Raises:
        CheckpointError: a value is not finite, or too large.
        FormatError: the format cannot represent the values.
        StatisticsError: the statistics that the factor is computed from are damaged.
    """
    factor = None if future is None else future.result()
    rows = source.read(tensor.name, start, stop)
    values = rows.dequantise() if isinstance(rows, QuantisedRows) else rows
    peak = np.abs(values).max()
    if not peak <= MAX_WEIGHT:  # also true for NaN
        raise CheckpointError(_describe_bad_value(source, tensor, start, values))
    try:
        if isinstance(rows, QuantisedRows) and tensor.kept:
            packed, squared_errors = _keep_codes(rows, tensor), np.zeros(values.shape[0])
        elif factor is not None:
            packed, squared_errors = feedback.quantise(tensor.format, values, tensor.group_size, factor)
        else:
            packed, squared_errors = quantise(tensor.format, values, tensor.group_size)
    except FormatError as exc:
        raise FormatError(f"tensor {tensor.name} cannot be stored: {exc}") from exc
    matrix = values.reshape(values.shape[0], -1)
    squares = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)
    return EncodedChunk(packed, squared_errors, squares)


def _keep_codes(rows: QuantisedRows, tensor: TensorPlan) -> PackedTensor:
    """Pack the parts of a source unchanged. Raises FormatError if they contradict the plan."""
    fmt = find_format(tensor.format)
    planned = (tensor.format, tensor.group_size, tensor.zeros)
    if not isinstance(fmt, GroupedFormat) or (rows.format, rows.group_size, "zeros" in rows.parts) != planned:
        raise FormatError(f"the source announced {tensor.format} and returned {rows.format}")
    layout = fmt.layout(rows.parts["codes"].shape, rows.group_size, tensor.zeros)
    for name, part in rows.parts.items():
        if name not in layout or part.dtype != layout[name][0]:
            raise FormatError(f"the source returned the part {name} {part.dtype}, which {fmt.name} does not have")
    others = {name: part for name, part in rows.parts.items() if name not in ("codes", "scales")}
    return fmt.pack(rows.parts["codes"], rows.parts["scales"], rows.group_size, **others)


def _describe_bad_value(source: Source, tensor: TensorPlan, start: int, values: NDArray[np.float32]) -> str:
    place = np.argwhere(~(np.abs(values) <= MAX_WEIGHT))[0]
    value = float(values[tuple(place)])
    index = [int(place[0]) + start, *(int(number) for number in place[1:])]
    kind = "NaN" if math.isnan(value) else "infinite" if math.isinf(value) else f"{value:.3g}, which is too large"
    return (
        f"{source.path}: tensor {tensor.name} is {kind} at {index}; "
        "the file is damaged or the training failed: download the checkpoint again"
    )
