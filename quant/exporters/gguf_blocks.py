"""Encode rows as blocks of GGUF types: the inverse of `quant.sources.gguf.block_parts`.

Layouts are those of ggml-common.h of llama.cpp. Codes and scales are (blocks, ...); the result is (blocks, bytes) u8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import FormatError

Bytes = NDArray[np.uint8]
Halves = NDArray[np.float16]
BLOCK, SUPER_BLOCK = 32, 256
_MOST_6_BITS = 63


def q4_0(codes: Bytes, scales: Halves) -> Bytes:
    """Encode codes (blocks, 32) and scales (blocks,). Also the layout of iq4_nl."""
    return np.concatenate([_raw(scales), _nibbles(codes, 16)], axis=1)


def q4_1(codes: Bytes, scales: Halves, minimums: Halves) -> Bytes:
    """Encode codes (blocks, 32), scales and minimums (blocks,)."""
    return np.concatenate([_raw(scales), _raw(minimums), _nibbles(codes, 16)], axis=1)


def q5_0(codes: Bytes, scales: Halves) -> Bytes:
    """Encode codes 0..31 (blocks, 32) and scales (blocks,)."""
    high = np.packbits(codes >> np.uint8(4), axis=1, bitorder="little")
    return np.concatenate([_raw(scales), high, _nibbles(codes & np.uint8(15), 16)], axis=1)


def q8_0(levels: NDArray[np.int8], scales: Halves) -> Bytes:
    """Encode whole numbers (blocks, 32) and scales (blocks,)."""
    return np.concatenate([_raw(scales), levels.view(np.uint8)], axis=1)


def q4_k(codes: Bytes, scales: Bytes, minimums: Bytes, super_scales: Halves, super_minimums: Halves) -> Bytes:
    """Encode codes (blocks, 256), scales and minimums 0..63 (blocks, 8), super-scales and super-minimums (blocks,)."""
    factors = [_raw(super_scales), _raw(super_minimums), _six_bits(scales, minimums)]
    return np.concatenate([*factors, _nibbles(codes, 32)], axis=1)


def q5_k(codes: Bytes, scales: Bytes, minimums: Bytes, super_scales: Halves, super_minimums: Halves) -> Bytes:
    """Encode as `q4_k`, with codes 0..31."""
    bits = (codes >> np.uint8(4)).reshape(-1, 8, BLOCK)
    high = np.bitwise_or.reduce(bits << np.arange(8, dtype=np.uint8)[:, None], axis=1)
    factors = [_raw(super_scales), _raw(super_minimums), _six_bits(scales, minimums)]
    return np.concatenate([*factors, high, _nibbles(codes & np.uint8(15), 32)], axis=1)


def iq4_xs(codes: Bytes, scales: NDArray[np.int8], super_scales: Halves) -> Bytes:
    """Encode codes (blocks, 256), scales -32..31 (blocks, 8) and super-scales (blocks,)."""
    if int(scales.min()) < -32 or int(scales.max()) > 31:
        raise FormatError("a scale of iq4k exceeds 6 bits; the model is damaged, convert it again")
    shifted = (scales.astype(np.int16) + 32).astype(np.uint16)
    low = (shifted & 15).astype(np.uint8)
    high = np.bitwise_or.reduce((shifted >> 4) << np.arange(0, 16, 2, dtype=np.uint16), axis=1).astype("<u2")
    factors = [_raw(super_scales), _raw(high), low[:, 0::2] | (low[:, 1::2] << np.uint8(4))]
    return np.concatenate([*factors, _nibbles(codes, 16)], axis=1)


def _raw(values: NDArray[Any]) -> Bytes:
    """Return the bytes of one value of 2 bytes per block, (blocks, 2)."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1, 2)


def _nibbles(codes: Bytes, width: int) -> Bytes:
    """Pack 4-bit codes: of each 2 * `width` codes, the first half is in the low nibbles of `width` bytes."""
    halves = codes.reshape(len(codes), -1, 2, width)
    return (halves[:, :, 0] | (halves[:, :, 1] << np.uint8(4))).reshape(len(codes), -1)


def _six_bits(scales: Bytes, minimums: Bytes) -> Bytes:
    """Pack 8 scales and 8 minimums of 6 bits per block into 12 bytes."""
    if max(int(scales.max()), int(minimums.max())) > _MOST_6_BITS:
        raise FormatError("a scale or minimum exceeds 6 bits; the model is damaged, convert it again")
    four = np.uint8(4)
    first = [part[:, :4] | (part[:, 4:] >> four << np.uint8(6)) for part in (scales, minimums)]
    last = (scales[:, 4:] & np.uint8(15)) | (minimums[:, 4:] << four)
    return np.concatenate([*first, last], axis=1)
