"""NumPy twins of the matrix-vector kernels. They add in the kernels' order, so results are equal to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats import FORMATS, IntegerFormat, PackedTensor
from quant.formats.dense import bf16_to_f32
from quant.formats.format import TILE_ROWS, from_tiles

Floats = NDArray[np.float32]
_BLOCK, _LANES, _WARPS = 32, 32, 8
_ONE = np.float32(1)


def fma(a: Any, b: Any, c: Any) -> Floats:
    """Return `a * b + c` of float32, rounded once."""
    product = np.multiply(a, b, dtype=np.float64)
    c = np.asarray(c, np.float64)
    with np.errstate(invalid="ignore"):
        total = product + c
        other = total - product
        error = (product - (total - other)) + (c - other)
    # Rounding to odd first makes the second rounding right.
    bits = np.asarray(total).view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & (bits & 1 == 0)
    away = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(inexact, bits + away, bits).view(np.float64).astype(np.float32)


def lane_sum(values: Floats, distances: tuple[int, ...]) -> Floats:
    """Return the sum over the last axis of lanes, added across each distance in turn; all lanes have it."""
    lanes = np.arange(values.shape[-1])
    for distance in distances:
        values = values + values[..., lanes ^ distance]
    return values[..., 0]


def ordered_sum(values: Floats) -> Floats:
    """Return the sum over the last axis, in order, from 0."""
    total = np.zeros(values.shape[:-1], np.float32)
    for index in range(values.shape[-1]):
        total = total + values[..., index]
    return total


def norm_factors(x: Floats, epsilon: float) -> Floats:
    """Return the factors of RMSNorm for the rows of `x` (rows, columns); NaN where a sum of squares is not finite."""
    rows, columns = x.shape
    threads = _WARPS * _LANES
    padded = np.zeros((rows, -(-columns // (4 * threads)) * 4 * threads), np.float32)
    padded[:, :columns] = x
    parts = padded.reshape(rows, -1, threads, 4)
    totals = np.zeros((rows, threads), np.float32)
    for step in range(parts.shape[1]):
        for index in range(4):
            totals = fma(parts[:, step, :, index], parts[:, step, :, index], totals)
    total = ordered_sum(lane_sum(totals.reshape(rows, _WARPS, _LANES), (16, 8, 4, 2, 1)))
    with np.errstate(invalid="ignore"):
        return _ONE / np.sqrt(total / np.float32(columns) + np.float32(epsilon)) + (total - total)


def normalise(x: Floats, weight: Floats, epsilon: float) -> Floats:
    """Return RMSNorm of `x` (rows, columns) with `weight` (columns)."""
    return weight * (x * norm_factors(x, epsilon)[:, None])


def quantise(x: Floats) -> tuple[NDArray[np.int8], Floats, NDArray[np.int32]]:
    """Quantise rows per 32 columns: codes (rows, columns), scales and sums of codes (rows, columns/32)."""
    blocks = x.reshape(len(x), -1, _BLOCK)
    bits = (blocks.view(np.uint32) & np.uint32(0x7FFFFFFF)).max(-1)
    largest, finite = bits.view(np.float32), bits < 0x7F800000
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.minimum(np.float32(127) / largest, np.finfo(np.float32).max)
        inverse = np.where(largest > 0, inverse, np.float32(0)).astype(np.float32)
        rounded = np.nan_to_num(np.rint(blocks * inverse[..., None]), nan=0)
    codes = rounded.astype(np.int64).astype(np.int8)
    scales = np.where(finite, largest / np.float32(127), np.float32(np.nan))
    return codes.reshape(x.shape), scales.astype(np.float32), codes.sum(-1, dtype=np.int32)


def multiply(
    packed: PackedTensor, codes: NDArray[np.int8], scales: Floats, split: int, bias: Floats | None = None
) -> Floats:
    """Return quantised activations times an integer matrix, (tokens, 16 * tiles) f32.

    Args:
        packed: the matrix.
        codes: (tokens, columns) i8.
        scales: (tokens, columns/32) f32.
        split: log2 of the warps that share a tile.
        bias: (16 * tiles) f32.
    """
    integers, factors = _integer_products(packed, codes)
    x_scales = scales[:, None, :]
    terms = integers.astype(np.float32)
    factors = x_scales if factors is None else factors[None] * x_scales
    return _finish(packed, _chain(terms, np.broadcast_to(factors, terms.shape), split), bias)


def _integer_products(packed: PackedTensor, codes: NDArray[np.int8]) -> tuple[NDArray[np.int64], Floats | None]:
    """Return integer products (tokens, rows, blocks of 32), and float scales of the groups if they are not integers."""
    fmt = FORMATS[packed.format]
    assert isinstance(fmt, IntegerFormat)
    padded = PackedTensor(
        packed.format, (TILE_ROWS * packed.num_tiles, packed.shape[1]), packed.group_size, packed.parts
    )
    stored = fmt.codes(padded)
    levels = stored.astype(np.int64) if fmt.table is None else np.array(fmt.table, np.int64)[stored]
    zeros, group_scales = fmt.zeros(padded).astype(np.int64), fmt.scales(padded)
    if fmt.shift:
        zeros, group_scales = zeros - fmt.shift * (group_scales & 1), group_scales >> 1
    repeat = packed.group_size // _BLOCK
    zeros, group_scales = np.repeat(zeros, repeat, 1), np.repeat(group_scales, repeat, 1)
    blocks = levels.reshape(len(levels), -1, _BLOCK) - zeros[..., None]
    products = np.einsum("ngk,tgk->tng", blocks, codes.reshape(len(codes), -1, _BLOCK).astype(np.int64))
    if fmt.scale == "float16":
        return products, group_scales.astype(np.float32)
    return products * group_scales.astype(np.int64), None


def _chain(terms: Floats, factors: Floats, split: int) -> Floats:
    """Return the sums over the last axis of `terms * factors`, in the order of lanes and warps."""
    here, warps = 8, 1 << split
    step = here * warps
    count = terms.shape[-1]
    totals = np.zeros((*terms.shape[:-1], step), np.float32)
    for first in range(0, count, step):
        width = min(step, count - first)
        part = slice(first, first + width)
        totals[..., :width] = fma(terms[..., part], factors[..., part], totals[..., :width])
    return ordered_sum(lane_sum(totals.reshape(*totals.shape[:-1], warps, here), (1, 2, 4)))


def _finish(packed: PackedTensor, total: Floats, bias: Floats | None) -> Floats:
    """Apply row scales and bias."""
    if "row_scales" in packed.parts:
        total = total * packed.parts["row_scales"].reshape(-1)
    return total if bias is None else total + bias


def multiply_floats(packed: PackedTensor, x: Floats, split: int, bias: Floats | None = None) -> Floats:
    """Return float activations times a bf16 or f32 matrix, (tokens, 16 * tiles) f32.

    Args:
        packed: the matrix.
        x: (tokens, columns) f32.
        split: log2 of the warps that share a tile.
        bias: (16 * tiles) f32.
    """
    stored = from_tiles(packed.parts["values"])
    weights = bf16_to_f32(stored) if stored.dtype == np.uint16 else stored
    lanes, warps = 16 if stored.dtype == np.uint16 else 8, 1 << split
    step = 4 * lanes * warps
    padding = -x.shape[1] % step
    columns = np.pad(weights, ((0, 0), (0, padding))).reshape(1, len(weights), -1, warps * lanes, 4)
    tokens = np.pad(x, ((0, 0), (0, padding))).reshape(len(x), 1, -1, warps * lanes, 4)
    totals = np.zeros((len(x), len(weights), warps * lanes), np.float32)
    for index in range(columns.shape[2]):
        for column in range(4):
            totals = fma(columns[:, :, index, :, column], tokens[:, :, index, :, column], totals)
    distances = (1, 2, 4, 8)[: lanes.bit_length() - 1]
    return _finish(packed, ordered_sum(lane_sum(totals.reshape(*totals.shape[:2], warps, lanes), distances)), bias)


def silu_product(gate: Floats, up: Floats) -> Floats:
    """Return `gate / (1 + exp(-gate)) * up`."""
    with np.errstate(over="ignore", invalid="ignore"):
        return gate / (_ONE + np.exp2(-gate * np.float32(1.4426950408889634))) * up


def embed(packed: PackedTensor, ids: NDArray[np.integer]) -> Floats:
    """Return rows of a matrix as f32: row scale times the exact product of scale and level - zero."""
    fmt = FORMATS[packed.format]
    if not isinstance(fmt, IntegerFormat):
        values = from_tiles(packed.parts["values"])[ids]
        return bf16_to_f32(values) if values.dtype == np.uint16 else values
    stored = fmt.codes(packed)[ids]
    levels = stored.astype(np.int32) if fmt.table is None else np.array(fmt.table, np.int32)[stored]
    zeros, group_scales = fmt.zeros(packed)[ids].astype(np.int32), fmt.scales(packed)[ids]
    if fmt.shift:
        zeros, group_scales = zeros - fmt.shift * (group_scales & 1), group_scales >> 1
    size = packed.group_size
    values = np.repeat(group_scales.astype(np.float32), size, 1) * (levels - np.repeat(zeros, size, 1))
    values = values.astype(np.float32)
    return fmt.row_scales_of(packed)[ids, None] * values if fmt.row_scales else values
