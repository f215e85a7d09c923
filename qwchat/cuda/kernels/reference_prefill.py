"""NumPy twins of the kernels of prefill: slow and simple, with the same roundings to f16."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats import PackedTensor, dequantise, find_format
from quant.formats.format import TILE_ROWS, from_quads, from_tiles, unpack_nibbles
from quant.formats.integer import IntegerFormat

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]

COLUMN_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]
"""Column of each stored activation, within 8."""

_TOP_EXPONENT = 14  # The largest magnitude of a row lies in [2^14, 2^15].
_SMALLEST_FIELD = _TOP_EXPONENT + 1


def row_factors(x: Floats) -> Floats:
    """Return the power of two of each row of `x` (tokens, columns), (tokens) f32."""
    fields = (np.fmax.reduce(np.abs(x), -1).view(np.uint32) >> np.uint32(23)).astype(np.int64)
    field = np.maximum(fields, _SMALLEST_FIELD) - _TOP_EXPONENT
    factors: Floats = (field.astype(np.uint32) << np.uint32(23)).view(np.float32)
    return factors


def activation_rows(x: Floats) -> tuple[Halves, Floats]:
    """Return `x` (tokens, columns) as the operands of a GEMM: xh in stored order, and xf."""
    factors = row_factors(x)
    halves = (x * (np.float32(1) / factors)[:, None]).astype(np.float16)
    return np.ascontiguousarray(halves.reshape(-1, 8)[:, COLUMN_ORDER]).reshape(x.shape), factors


def plain_rows(xh: Halves, xf: Floats) -> NDArray[np.float64]:
    """Return the values of activations in plain order."""
    plain = np.empty((xh.size // 8, 8), np.float64)
    plain[:, COLUMN_ORDER] = xh.reshape(-1, 8)
    return plain.reshape(xh.shape) * xf[:, None].astype(np.float64)


def weight_halves(packed: PackedTensor) -> NDArray[np.float64]:
    """Return the weights as the kernels multiply them, (16 * tiles, K): rounded to f16, without row scales."""
    record = find_format(packed.format)
    if not isinstance(record, IntegerFormat):
        padded = PackedTensor(packed.format, (TILE_ROWS * packed.num_tiles, packed.shape[1]), 0, packed.parts)
        return dequantise(padded).astype(np.float16).astype(np.float64)
    unpack = unpack_nibbles if record.stored_bits == 4 else from_quads
    levels = unpack(packed.parts["codes"]).astype(np.int64)
    if record.table is not None:
        levels = np.array(record.table)[levels]
    scales = from_tiles(packed.parts["scales"])
    zeros: NDArray[Any] = np.full(scales.shape, record.zero, np.int64)
    if "zeros" in packed.parts:
        zeros = from_tiles(packed.parts["zeros"]).astype(np.int64)
    if record.shift:
        zeros, scales = zeros - record.shift * (scales & 1), scales >> 1
    levels -= np.repeat(zeros, packed.group_size, axis=1)
    wide = np.repeat(scales.astype(np.float64), packed.group_size, axis=1)
    with np.errstate(over="ignore"):
        return (levels * wide).astype(np.float16).astype(np.float64)


def gemm(packed: PackedTensor, xh: Halves, xf: Floats, bias: Floats | None = None) -> NDArray[np.float64]:
    """Return `x @ W.T` for activations `xh`, `xf`: (tokens, 16 * tiles).

    Args:
        packed: the weights.
        xh: (tokens, columns) in stored order.
        xf: (tokens).
        bias: (16 * tiles), or None.
    """
    result = plain_rows(xh, xf) @ weight_halves(packed).T
    if "row_scales" in packed.parts:
        result *= packed.parts["row_scales"].reshape(-1)
    return result if bias is None else result + bias
