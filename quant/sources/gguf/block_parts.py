"""Bytes of GGUF tensors as parts of the format that keeps their codes, or as float32 rows.

Layouts and formulas are those of ggml-common.h and ggml-quants.c of llama.cpp; rounding is that of the Python package
gguf, whose float32 operations are done in the same order. Bytes are (rows, blocks, bytes per block) u8. All functions
return new memory. NaN and Inf pass through.

| type   | home | parts |
| ------ | ---- | ----- |
| q4_0   | lin4 | codes, scales; the zero point is 8 |
| q5_0   | lin8 | codes + 112, scales; the zero point 16 becomes 128 |
| q8_0   | lin8 | codes + 128, scales |
| q4_1   | min4 | codes, scales, minimums |
| q4_k   | k4   | codes, scales and minimums of 6 bits, super-scales, super-minimums |
| q5_k   | k8   | as q4_k |
| iq4_nl | iq4  | codes, scales |
| iq4_xs | iq4k | codes, scales of 6 bits with sign, super-scales |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats.dense import bf16_to_f32

Bytes = NDArray[np.uint8]
Halves = NDArray[np.float16]
Rows = NDArray[np.float32]
Parts = dict[str, NDArray[Any]]


def float_rows(name: str, blocks: Bytes) -> Rows:
    """Return the values of blocks of the type `name`, which has no home, as (rows, K) f32."""
    with np.errstate(invalid="ignore", over="ignore"):  # scales may be infinite; the caller checks the values
        values = _VALUES[name](blocks)
    return values.reshape(blocks.shape[0], -1)


def home_parts(name: str, blocks: Bytes) -> Parts:
    """Return the parts of blocks of the type `name` in the format `HOMES[name]`, each (rows, columns)."""
    parts = _HOMES[name][1](blocks)
    return {part: values.reshape(blocks.shape[0], -1) for part, values in parts.items()}


def _halves(blocks: Bytes, start: int) -> Halves:
    """Return the f16 at byte `start` of each block, (rows, blocks)."""
    return np.ascontiguousarray(blocks[..., start : start + 2]).view("<f2")[..., 0]


def _nibbles(packed: Bytes, width: int) -> Bytes:
    """Return 4-bit codes, the low halves of each `width` bytes before the high ones: (rows, blocks, 2 * bytes)."""
    codes = np.empty((*packed.shape[:2], packed.shape[2] // width, 2, width), np.uint8)
    packed = packed.reshape(*packed.shape[:2], -1, width)
    np.bitwise_and(packed, 15, out=codes[..., 0, :])
    np.right_shift(packed, 4, out=codes[..., 1, :])
    return codes.reshape(*packed.shape[:2], -1)


def _bit_planes(packed: Bytes, width: int, bits: int) -> Bytes:
    """Return codes of 1 or 2 bits, the lowest of each `width` bytes first: (rows, blocks, 8 / bits * bytes)."""
    planes = 8 // bits
    codes = np.empty((*packed.shape[:2], packed.shape[2] // width, planes, width), np.uint8)
    packed = packed.reshape(*packed.shape[:2], -1, width)
    for plane in range(planes):
        np.right_shift(packed, plane * bits, out=codes[..., plane, :])
    codes &= (1 << bits) - 1
    return codes.reshape(*packed.shape[:2], -1)


def _q4_0(blocks: Bytes) -> Parts:
    return {"codes": _nibbles(blocks[..., 2:], 16), "scales": _halves(blocks, 0)}


def _q4_1(blocks: Bytes) -> Parts:
    codes = _nibbles(blocks[..., 4:], 16)
    return {"codes": codes, "scales": _halves(blocks, 0), "minimums": _halves(blocks, 2)}


def _five_bits(blocks: Bytes, start: int) -> Bytes:
    """Return the codes of Q5_0 and Q5_1: four bytes of high bits at `start`, then the low halves of the codes."""
    high = np.unpackbits(blocks[..., start : start + 4], axis=-1, bitorder="little")
    high <<= 4
    high |= _nibbles(blocks[..., start + 4 :], 16)
    return high


def _q5_0(blocks: Bytes) -> Parts:
    codes = _five_bits(blocks, 2)
    codes += 112
    return {"codes": codes, "scales": _halves(blocks, 0)}


def _q5_1(blocks: Bytes) -> Rows:
    values = _five_bits(blocks, 4).astype(np.float32)
    values *= _halves(blocks, 0).astype(np.float32)[..., None]
    values += _halves(blocks, 2).astype(np.float32)[..., None]
    return values


def _q8_0(blocks: Bytes) -> Parts:
    return {"codes": blocks[..., 2:] ^ 128, "scales": _halves(blocks, 0)}


def _sub_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Return the 6-bit scales and minimums of Q4_K and Q5_K from their 12 bytes, each (rows, blocks, 8)."""
    low, middle, high = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = np.concatenate((low & 63, high & 15 | low >> 6 << 4), axis=-1)
    minimums = np.concatenate((middle & 63, high >> 4 | middle >> 6 << 4), axis=-1)
    return scales, minimums


def _with_super_scales(blocks: Bytes, codes: Bytes) -> Parts:
    scales, minimums = _sub_scales(blocks[..., 4:16])
    return {
        "codes": codes,
        "scales": scales,
        "minimums": minimums,
        "super_scales": _halves(blocks, 0),
        "super_minimums": _halves(blocks, 2),
    }


def _q4_k(blocks: Bytes) -> Parts:
    return _with_super_scales(blocks, _nibbles(blocks[..., 16:], 32))


def _q5_k(blocks: Bytes) -> Parts:
    codes = _bit_planes(blocks[..., 16:48], 32, 1)
    codes <<= 4
    codes |= _nibbles(blocks[..., 48:], 32)
    return _with_super_scales(blocks, codes)


def _iq4_xs(blocks: Bytes) -> Parts:
    high = np.ascontiguousarray(blocks[..., 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    low = _nibbles(blocks[..., 4:8], 1)
    scales = (low | high.astype(np.uint8) << 4).astype(np.int8) - np.int8(32)
    return {"codes": _nibbles(blocks[..., 8:], 16), "scales": scales, "super_scales": _halves(blocks, 0)}


def _by_sixteen(codes: NDArray[np.uint8] | NDArray[np.int8]) -> Rows:
    """Return codes as f32 in groups of 16: (rows, blocks, 16, 16)."""
    return codes.reshape(*codes.shape[:2], 16, 16).astype(np.float32)


def _q2_k(blocks: Bytes) -> Rows:
    values = _by_sixteen(_bit_planes(blocks[..., 16:80], 32, 2))
    scales, minimums = blocks[..., :16] & 15, blocks[..., :16] >> 4
    values *= (_halves(blocks, 80).astype(np.float32)[..., None] * scales)[..., None]
    values -= (_halves(blocks, 82).astype(np.float32)[..., None] * minimums)[..., None]
    return values


def _q3_k(blocks: Bytes) -> Rows:
    codes = _bit_planes(blocks[..., :32], 32, 1)  # the high bit is inverted: 0 subtracts 4
    codes <<= 2
    codes |= _bit_planes(blocks[..., 32:96], 32, 2)
    low = _nibbles(blocks[..., 96:104], 8)
    high = _bit_planes(blocks[..., 104:108], 4, 2)
    scales = (low | high << 4).astype(np.int8) - np.int8(32)
    values = _by_sixteen(codes.view(np.int8) - np.int8(4))
    values *= (_halves(blocks, 108).astype(np.float32)[..., None] * scales)[..., None]
    return values


def _q6_k(blocks: Bytes) -> Rows:
    codes = _bit_planes(blocks[..., 128:192], 32, 2)
    codes <<= 4
    codes |= _nibbles(blocks[..., :128], 64)
    values = _by_sixteen(codes.view(np.int8) - np.int8(32))
    scales = blocks[..., 192:208].view(np.int8)
    values *= (_halves(blocks, 208).astype(np.float32)[..., None] * scales)[..., None]
    return values


def _f32(blocks: Bytes) -> Rows:
    return np.ascontiguousarray(blocks).view("<f4").astype(np.float32)


def _f16(blocks: Bytes) -> Rows:
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)


def _bf16(blocks: Bytes) -> Rows:
    return bf16_to_f32(np.ascontiguousarray(blocks).view("<u2"))


_HOMES: dict[str, tuple[str, Callable[[Bytes], Parts]]] = {
    "q4_0": ("lin4", _q4_0),
    "q4_1": ("min4", _q4_1),
    "q5_0": ("lin8", _q5_0),
    "q8_0": ("lin8", _q8_0),
    "q4_k": ("k4", _q4_k),
    "q5_k": ("k8", _q5_k),
    "iq4_nl": ("iq4", _q4_0),
    "iq4_xs": ("iq4k", _iq4_xs),
}
_VALUES: dict[str, Callable[[Bytes], Rows]] = {
    "f32": _f32,
    "f16": _f16,
    "bf16": _bf16,
    "q5_1": _q5_1,
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q6_k": _q6_k,
}
HOMES = {name: home for name, (home, _) in _HOMES.items()}
"""Name of the format that keeps the codes of a type unchanged."""
