"""Quantiser of the invented format `curved`: the nearest level, with scales that span each group."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.formats import IntegerFormat, PackedTensor

LOOPS = None


def quantise(
    fmt: IntegerFormat, values: NDArray[np.float32], group_size: int
) -> tuple[PackedTensor, NDArray[np.float64]]:
    """Pack `values` (rows, K). Also return the squared error of each row (rows,)."""
    assert fmt.table is not None
    rows = values.shape[0]
    groups = values.reshape(rows, -1, group_size)
    peak = np.take_along_axis(groups, np.abs(groups).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    levels = np.array(fmt.table, np.float32) - np.float32(fmt.zero)
    row_scales = np.abs(peak).max(axis=1) / np.float32(127 * levels.max())
    scales = np.rint(peak / (row_scales[:, None] * levels.max()))
    unit = (scales * row_scales[:, None])[..., None]
    u = np.divide(groups, unit, out=np.zeros_like(groups), where=unit != 0)
    codes = np.abs(u[..., None] - levels).argmin(axis=-1).reshape(values.shape).astype(np.uint8)
    packed = fmt.pack(codes, scales.astype(np.int8), group_size, row_scales=row_scales.astype(np.float32))
    return packed, np.square(fmt.dequantise(packed).astype(np.float64) - values).sum(axis=1)
