"""Reference quantisers in plain NumPy: slow, easy to check, and bit for bit equal to the compiled loops.

The order of sums matters: the compiled loops add the values of a group from left to right in float32, and so does
`sum_left_to_right`. Tests compare every code, scale and zero point.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats import FORMATS, IntegerFormat, PackedTensor
from quant.formats import q4 as q4_format
from quant.formats import q6 as q6_format
from quant.formats import q8 as q8_format
from quant.quantisers import linear, q4, q6, q8

F32 = NDArray[np.float32]


def quantise(name: str, values: F32, group_size: int) -> tuple[PackedTensor, NDArray[np.float64]]:
    """Quantise (rows, K) like `quant.quantisers.quantise`, for the formats that round. Return also (rows,) errors."""
    fmt = FORMATS[name]
    if fmt.quantiser == q4.__name__:
        return quantise_q4(values)
    if fmt.quantiser == q6.__name__:
        return quantise_q6(values)
    if fmt.quantiser == q8.__name__:
        return quantise_q8(values)
    assert isinstance(fmt, IntegerFormat)
    assert fmt.quantiser == linear.__name__
    return quantise_linear(fmt, values, group_size)


def sum_left_to_right(terms: NDArray[Any]) -> NDArray[Any]:
    """Sum over the last axis from left to right, in the precision of `terms`."""
    total = np.zeros(terms.shape[:-1], terms.dtype)
    for position in range(terms.shape[-1]):
        total = total + terms[..., position]
    return total


def divide(numerator: F32, denominator: F32) -> F32:
    """Return numerator / denominator, or 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def least_squares(x: F32, levels: F32) -> tuple[F32, F32]:
    """Return the scale d that minimises sum (x - d levels)^2 over the last axis, and its reduction of sum x^2."""
    products, squares = sum_left_to_right(x * levels), sum_left_to_right(levels * levels)
    scale = divide(products, squares)
    return scale, products * scale


def quantise_q4(values: F32) -> tuple[PackedTensor, NDArray[np.float64]]:
    """Quantise to q4. Method and formulas: `quant.quantisers.q4`."""
    rows, columns = values.shape
    x = values.reshape(rows, -1, q4_format.GROUP_SIZE)
    place = np.abs(x).argmax(axis=-1)
    peak = np.take_along_axis(x, place[..., None], axis=-1)[..., 0]
    peak = np.where(np.abs(peak) < q4.TINY, np.float32(0), peak)
    block = x * divide(np.ones_like(peak), peak)[..., None]

    scales, offsets, best = np.zeros_like(peak), np.zeros_like(peak), np.zeros_like(peak)
    for offset in (np.float32(0), q4.SHIFT):
        for end in (q4.LOWEST, q4.HIGHEST):
            for factor in q4.FACTORS:
                spread = (end + offset) * factor
                levels = q4_levels(block * spread - offset) + offset
                scale, score = least_squares(block, levels)
                better = score > best
                best = np.where(better, score, best)
                scales = np.where(better, scale * peak, scales)
                offsets = np.where(better, offset, offsets)

    row_scales = np.abs(scales).max(axis=1) / np.float32(q4_format.SCALE_MAX)
    nearest = np.rint(divide(scales, np.broadcast_to(row_scales[:, None], scales.shape)))
    best = np.full_like(peak, np.inf)
    whole = np.zeros_like(peak)
    for step in (0, -1, 1):
        candidate = np.clip(nearest + np.float32(step), q4_format.SCALE_MIN, q4_format.SCALE_MAX).astype(np.float32)
        candidate = np.where(row_scales[:, None] > 0, candidate, np.float32(0))
        unit, u = q4_relative(block, peak, row_scales, candidate, offsets)
        distance = block - unit[..., None] * (q4_levels(u) + offsets[..., None])
        error = sum_left_to_right(distance * distance)
        better = error < best
        best = np.where(better, error, best)
        whole = np.where(better, candidate, whole)
    _, u = q4_relative(block, peak, row_scales, whole, offsets)
    codes = q4_codes(u).reshape(rows, columns).astype(np.uint8)
    squared_errors = sum_left_to_right(best.astype(np.float64) * peak.astype(np.float64) * peak.astype(np.float64))
    bits = (offsets != 0).astype(np.uint8)
    return q4_format.pack(codes, whole.astype(np.int8), bits, row_scales), squared_errors


def q4_codes(u: F32) -> NDArray[np.int64]:
    """Return the index of the codebook entry nearest to u: the number of midpoints below it."""
    return np.stack([u > midpoint for midpoint in q4.MIDPOINTS]).sum(axis=0)


def q4_levels(u: F32) -> F32:
    """Return the codebook entry nearest to u."""
    return q4_format.CODEBOOK.astype(np.float32)[q4_codes(u)]


def q4_relative(block: F32, peak: F32, row_scales: F32, whole: F32, offsets: F32) -> tuple[F32, F32]:
    """Return the group scale divided by the peak, and the weights divided by that scale minus the table offset."""
    unit = divide(row_scales[:, None] * whole, peak)
    inverse = divide(np.ones_like(unit), unit)
    return unit, block * inverse[..., None] - offsets[..., None]


def quantise_q6(values: F32) -> tuple[PackedTensor, NDArray[np.float64]]:
    """Quantise to q6. Method and formulas: `quant.quantisers.q6`."""
    rows, columns = values.shape
    row_scales = q6.row_scales_of(values)
    inverse = divide(np.ones_like(row_scales), row_scales)
    x = values.reshape(rows, -1, q6_format.GROUP_SIZE) * inverse[:, None, None]
    place = np.abs(x).argmax(axis=-1)
    peak = np.take_along_axis(x, place[..., None], axis=-1)[..., 0]
    base = np.ceil(np.abs(peak) / np.float32(-q6_format.CODE_MIN))
    sign = np.where(peak > 0, np.float32(-1), np.float32(1))
    best = np.full_like(base, np.inf)
    scales = np.zeros_like(base)
    for step in q6.CANDIDATES:
        candidate = sign * np.clip(base + np.float32(step), 0, q6_format.SCALE_MAX).astype(np.float32)
        distance = x - candidate[..., None] * q6_codes(x, candidate)
        error = sum_left_to_right(distance * distance)
        better = error < best
        best = np.where(better, error, best)
        scales = np.where(better, candidate, scales)
    codes = q6_codes(x, scales).reshape(rows, columns).astype(np.int8)
    wide = row_scales.astype(np.float64)[:, None]
    return q6_format.pack(codes, scales.astype(np.int8), row_scales), sum_left_to_right(
        best.astype(np.float64) * wide * wide
    )


def q6_codes(x: F32, scales: F32) -> F32:
    """Return round(x / scale), clipped to -32..31."""
    nearest = np.rint(x * divide(np.ones_like(scales), scales)[..., None])
    return np.clip(nearest, q6_format.CODE_MIN, q6_format.CODE_MAX).astype(np.float32)


def quantise_q8(values: F32) -> tuple[PackedTensor, NDArray[np.float64]]:
    """Quantise to q8. Method and formulas: `quant.quantisers.q8`."""
    rows, columns = values.shape
    row_scales = q8.row_scales_of(values)
    inverse = divide(np.ones_like(row_scales), row_scales)
    x = values.reshape(rows, -1, q8_format.GROUP_SIZE) * inverse[:, None, None]
    base = np.ceil(np.abs(x).max(axis=-1) / np.float32(q8_format.CODE_MAX))
    best = np.full_like(base, np.inf)
    scales = np.zeros_like(base)
    for step in q8.CANDIDATES:
        candidate = np.clip(base + np.float32(step), 0, q8_format.SCALE_MAX).astype(np.float32)
        distance = x - candidate[..., None] * q8_codes(x, candidate)
        error = sum_left_to_right(distance * distance)
        better = error < best
        best = np.where(better, error, best)
        scales = np.where(better, candidate, scales)
    codes = q8_codes(x, scales).reshape(rows, columns).astype(np.int8)
    wide = row_scales.astype(np.float64)[:, None]
    return q8_format.pack(codes, scales.astype(np.uint8), row_scales), sum_left_to_right(
        best.astype(np.float64) * wide * wide
    )


def q8_codes(x: F32, scales: F32) -> F32:
    """Return round(x / scale), clipped to -127..127."""
    nearest = np.rint(x * divide(np.ones_like(scales), scales)[..., None])
    return np.clip(nearest, -q8_format.CODE_MAX, q8_format.CODE_MAX).astype(np.float32)


def quantise_linear(fmt: IntegerFormat, values: F32, group_size: int) -> tuple[PackedTensor, NDArray[np.float64]]:
    """Quantise to a linear format. Method and formulas: `quant.quantisers.linear`."""
    rows, columns = values.shape
    x = values.reshape(rows, columns // group_size, group_size)
    asymmetric = fmt.stores_zeros
    top = np.float32(fmt.largest_code)
    low, high = np.minimum(x.min(axis=-1), 0), np.maximum(x.max(axis=-1), 0)
    span = high - low if asymmetric else np.float32(2) * np.maximum(high, -low)
    scales, best = np.zeros_like(span), np.zeros_like(span)
    zeros = np.full_like(span, fmt.zero)
    for factor in linear.factors(fmt):
        step = span * factor / (top if asymmetric else top - np.float32(1))
        inverse = divide(np.ones_like(step), step)
        zero = np.clip(np.rint(-low * inverse), 0, top) if asymmetric else np.full_like(step, fmt.zero)
        scale, score = least_squares(x, linear_codes(x, inverse, zero, top) - zero[..., None])
        better = score > best
        best = np.where(better, score, best)
        scales = np.where(better, scale, scales)
        zeros = np.where(better, zero, zeros)
    stored = scales.astype(np.float16)
    scales = stored.astype(np.float32)
    codes = linear_codes(x, divide(np.ones_like(scales), scales), zeros, top)
    distance = x - scales[..., None] * (codes - zeros[..., None])
    squared_errors = sum_left_to_right(sum_left_to_right(distance * distance).astype(np.float64))
    plain = codes.reshape(rows, columns).astype(np.uint8)
    kept = zeros.astype(np.uint8) if asymmetric else None
    return fmt.pack(plain, stored, group_size, zeros=kept), squared_errors


def linear_codes(x: F32, inverse: F32, zero: F32, top: np.float32) -> F32:
    """Return round(x / scale) + zero, clipped to 0..top."""
    return np.clip(np.rint(x * inverse[..., None]) + zero[..., None], 0, top).astype(np.float32)


METHODS = [(fmt.name, size) for fmt in FORMATS.values() if fmt.quantiser for size in fmt.group_sizes]
"""All (format, group size) pairs that the quantisers support."""
