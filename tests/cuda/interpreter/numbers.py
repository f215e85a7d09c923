"""What numeric instructions compute, on arrays or NumPy scalars, as the PTX manual defines it."""

from __future__ import annotations

import functools

import numpy as np

where = np.where
abs_, minimum, maximum = np.abs, np.minimum, np.maximum
min_number, max_number, min_nan, max_nan = np.fmin, np.fmax, np.minimum, np.maximum
SMALLEST_NORMAL = np.float32(2.0**-126)


def flush(value):
    """Return a float32 with denormal numbers as zeros of their sign."""
    return np.where(np.abs(value) < SMALLEST_NORMAL, np.copysign(np.float32(0), value), value).astype(np.float32)


def saturate(value):
    """Return a float limited to 0 … 1; NaN becomes 0."""
    return np.fmin(np.fmax(value, value.dtype.type(0)), value.dtype.type(1))


def odd_sum(product, addend):
    """Return `product + addend` in float64, rounded to odd, so that rounding it again to fewer bits is exact.

    Source: S. Boldo and G. Melquiond, Emulation of FMA and correctly rounded sums (2008).
    """
    total = product + addend
    other = total - product
    error = (product - (total - other)) + (addend - other)
    bits = np.asarray(total).view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & ((bits & 1) == 0)
    if not np.any(inexact):
        return total
    away = (error > 0) == (total > 0)
    return np.where(inexact, bits + np.where(away, 1, -1), bits).view(np.float64)


def fma32(a, b, c):
    """Return a * b + c of float32, rounded once."""
    product = np.multiply(a, b, dtype=np.float64)
    total = product + c
    low = np.asarray(total).view(np.int64) & 0x1FFFFFFF
    # A second rounding can only go wrong in the middle between two floats, or where they are denormal.
    if np.any((low == 0x10000000) | ((np.abs(total) < 2.0**-125) & (total != 0))):
        total = odd_sum(product, np.asarray(c, np.float64))
    return total.astype(np.float32)


def multiply_high(a, b):
    """Return the upper half of the product of two integers of the same type."""
    if a.dtype.itemsize == 4:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        return ((a.astype(wide) * b.astype(wide)) >> wide(32)).astype(a.dtype)
    products = np.asarray(a).astype(object) * np.asarray(b).astype(object) >> 64
    return np.asarray(products).astype(a.dtype)


def divide(a, b):
    """Return the quotient rounded towards zero; division by zero gives all bits set."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // safe
    inexact = (quotient * safe != a) & ((a < 0) != (safe < 0))
    return np.where(b == 0, a.dtype.type(0) - a.dtype.type(1), quotient + inexact.astype(a.dtype)).astype(a.dtype)


def remainder(a, b):
    """Return what `divide` leaves, with the sign of `a`."""
    return np.where(b == 0, a, a - divide(a, b) * b).astype(a.dtype)


def shift_left(value, amount):
    """Return `value << amount`; 0 if all bits leave."""
    bits = 8 * value.dtype.itemsize
    kept = np.left_shift(value, np.minimum(amount, bits - 1).astype(value.dtype))
    return np.where(amount >= bits, value.dtype.type(0), kept).astype(value.dtype)


def shift_right(value, amount):
    """Return `value >> amount`, with copies of the sign if `value` is signed."""
    bits = 8 * value.dtype.itemsize
    kept = np.right_shift(value, np.minimum(amount, bits - 1).astype(value.dtype))
    return kept if value.dtype.kind == "i" else np.where(amount >= bits, value.dtype.type(0), kept).astype(value.dtype)


def funnel(direction, mode, low, high, amount):
    """Return 32 bits of high:low, shifted: the upper ones of a left shift, the lower ones of a right one."""
    limited = np.minimum(amount, 32) if mode == "clamp" else amount & 31
    both = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
    shift = limited.astype(np.uint64)
    moved = (both << shift) >> np.uint64(32) if direction == "l" else both >> shift
    moved = np.where((direction == "l") & (shift == 32), low, moved)
    return moved.astype(np.uint32)


def bfe(value, position, length):
    """Return `length` bits from `position` on; the sign is that of the highest bit taken."""
    bits = 8 * value.dtype.itemsize
    position, length = position & 255, length & 255
    raw = value.astype(np.uint64) if value.dtype.kind == "u" else value.astype(np.int64).view(np.uint64)
    raw = raw & np.uint64(2**bits - 1)
    taken = shift_right(raw, position) & (shift_left(np.ones_like(raw), length) - np.uint64(1))
    if value.dtype.kind == "i":
        highest = np.minimum(position.astype(np.int64) + length - 1, bits - 1)
        negative = (shift_right(raw, highest) & np.uint64(1)).astype(bool) & (length > 0)
        copied = np.minimum(length.astype(np.int64), np.maximum(bits - position.astype(np.int64), 0))
        taken = np.where(negative, taken | shift_left(np.full_like(raw, 2**64 - 1), copied), taken)
    return np.asarray(taken).astype(f"u{value.dtype.itemsize}").view(value.dtype)


def bfi(bits, base, position, length):
    """Return `base` with `length` bits from `position` on replaced by the lowest of `bits`."""
    position, length = position & 255, length & 255
    one = np.ones_like(base)
    mask = shift_left(shift_left(one, length) - one, position)
    return (base & ~mask) | (shift_left(bits, position) & mask)


def popc(value):
    """Return the number of ones."""
    return np.bitwise_count(value).astype(np.uint32)


def clz(value):
    """Return the number of leading zeros."""
    bits = 8 * value.dtype.itemsize
    count = np.zeros(np.shape(value), np.uint32)
    for position in range(bits):
        count += (value >> value.dtype.type(position)) == 0
    return np.asarray(count).astype(np.uint32)


def brev(value):
    """Return the bits in reverse order."""
    out = np.zeros_like(value)
    bits = 8 * value.dtype.itemsize
    for position in range(bits):
        out = out | (
            ((value >> value.dtype.type(position)) & value.dtype.type(1)) << value.dtype.type(bits - 1 - position)
        )
    return out


def permute(a, b, selector):
    """Return four bytes of the eight of b:a; bit 3 of a selector's nibble replicates the sign of the chosen byte."""
    selectors = np.asarray(selector)
    if selectors.ndim == 0 or (selectors == selectors[0]).all():
        return permute_alike(a, b, int(selectors.flat[0]))
    first, second = np.asarray(a), np.asarray(b)
    if (first == first.flat[0]).all() and (second == second.flat[0]).all():
        return _permute_table(int(first.flat[0]), int(second.flat[0]))[selectors & np.uint32(0xFFFF)]
    both = first.astype(np.uint64) | (second.astype(np.uint64) << np.uint64(32))
    out = np.zeros(selectors.shape, np.uint32)
    for index in range(4):
        nibble = (selectors >> np.uint32(4 * index)) & np.uint32(15)
        out |= _chosen(both, nibble) << np.uint32(8 * index)
    return out


def _chosen(both, nibble):
    byte = ((both >> ((nibble & np.uint32(7)).astype(np.uint64) << np.uint64(3))) & np.uint64(255)).astype(np.uint32)
    return np.where(nibble < 8, byte, (byte >> np.uint32(7)) * np.uint32(255))


def permute_alike(a, b, selector):
    """Return `permute` if the selector is the same everywhere."""
    out = np.uint32(0)
    for index in range(4):
        nibble = selector >> (4 * index) & 15
        byte = ((a if nibble & 4 == 0 else b) >> np.uint32(8 * (nibble & 3))) & np.uint32(255)
        byte = byte if nibble < 8 else (byte >> np.uint32(7)) * np.uint32(255)
        out = out | (byte << np.uint32(8 * index))
    return out


@functools.lru_cache(maxsize=64)
def _permute_table(a: int, b: int):
    """Return `permute(a, b, selector)` for the 65,536 selectors."""
    selectors = np.arange(1 << 16, dtype=np.uint32)
    out = np.zeros(1 << 16, np.uint32)
    for index in range(4):
        out |= _chosen(np.uint64(a | b << 32), (selectors >> np.uint32(4 * index)) & np.uint32(15)) << np.uint32(
            8 * index
        )
    return out


def lookup3(table, a, b, c):
    """Return the bitwise function of three words that a truth table of 8 bits defines."""
    out = np.uint32(0)
    for row in range(8):
        if table >> row & 1:
            out = out | ((a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c))
    return out


def dot4(a, b, c):
    """Return c plus the sum of products of four bytes; the types say how the bytes are signed."""
    wide_a, wide_b = (np.ascontiguousarray(v).view(f"{v.dtype.kind}1").reshape(-1, 4).astype(np.int32) for v in (a, b))
    total = np.einsum("ij,ij->i", *np.broadcast_arrays(wide_a, wide_b))
    shape = np.broadcast_shapes(np.shape(a), np.shape(b))
    return (total.reshape(shape).astype(c.dtype) + c).astype(c.dtype)


def ex2(value):
    """Return 2 to the power of a float32."""
    return np.exp2(value)


def lg2(value):
    """Return the logarithm to base 2 of a float32."""
    return np.log2(value)


def rcp(value):
    """Return 1 / value."""
    return np.float32(1) / value


def rsqrt(value):
    """Return 1 / sqrt(value), rounded once from float64."""
    return (1 / np.sqrt(value.astype(np.float64))).astype(np.float32)


sqrt, sin, cos, tanh = np.sqrt, np.sin, np.cos, np.tanh


def join(parts, dtype):
    """Return a word made of parts, lowest first."""
    word = parts[0].astype(dtype)
    bits = 8 * dtype.itemsize // len(parts)
    for index, part in enumerate(parts[1:], 1):
        word = word | (part.astype(dtype) << dtype.type(bits * index))
    return word


def split(word, dtype, count):
    """Return the parts of a word, lowest first."""
    bits = 8 * word.dtype.itemsize // count
    return [(word >> word.dtype.type(bits * index)).astype(dtype) for index in range(count)]
