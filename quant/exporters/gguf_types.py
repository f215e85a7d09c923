"""Choose the GGUF type of each tensor, and encode its rows.

| format            | type                         | values                                       |
| ----------------- | ---------------------------- | -------------------------------------------- |
| lin4              | q4_0, with zero points q4_1  | unchanged; q4_1 rounds the minimums to f16   |
| lin8              | q8_0, codes of 5 bits q5_0   | unchanged                                    |
| min4              | q4_1                         | unchanged                                    |
| k4, k8, iq4, iq4k | q4_k, q5_k, iq4_nl, iq4_xs   | unchanged                                    |
| q4, q8            | q8_0                         | scales rounded to f16                        |
| bf16, f32         | bf16 and f16                 | bf16 unchanged, f32 rounded                  |
| vector            | f32                          | unchanged                                    |

If all zero points of a lin8 tensor leave the whole numbers within 8 bits, it is q8_0 as well; otherwise it is stored
unquantised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.exporters import gguf_blocks as blocks
from quant.exporters.export_plan import EncodedRows, FileEntry, TensorExport
from quant.exporters.floats import encode_floats, f32_to_f16
from quant.exporters.gguf_blocks import BLOCK, SUPER_BLOCK
from quant.exporters.grids import LEAST_LEVEL, MOST_LEVEL, REQUANTISED_GROUP_SIZE, has_levels, levels_of
from quant.exporters.pipeline import row_ranges, rows_of
from quant.formats import GroupedFormat, PackedTensor, dequantise, find_format
from quant.formats.dense import BF16
from quant.formats.imported import IQ4, IQ4K, K4, K8, MIN4
from quant.formats.linear import LIN4, LIN8
from quant.quantisers import quantise
from quant.sources.gguf.block_types import BLOCK_TYPES
from quant.sources.source import Rows

BLOCK_TYPES_BY_NAME = {kind.name: kind for kind in BLOCK_TYPES.values()}
_OWN_TYPES = {MIN4.name: "q4_1", K4.name: "q4_k", K8.name: "q5_k", IQ4.name: "iq4_nl", IQ4K.name: "iq4_xs"}
_Q5_0_SHIFT = 112
"""Code of lin8 that stands for code 0 of q5_0."""

Parts = dict[str, NDArray[Any]]


def gguf_tensor(name: str, gguf_name: str, packed: PackedTensor, bits: int | None, dtype: str | None) -> TensorExport:
    """Return the plan of one tensor.

    Args:
        name: name of the tensor in the model.
        gguf_name: its name in the file.
        packed: the tensor. Its codes and zero points are read if the type depends on them.
        bits: bits of matrices that no type stores unchanged. None: their precision is kept.
        dtype: type of unquantised matrices. None: bf16 for bf16, f16 for others.
    """
    kind = "f32" if len(packed.shape) == 1 else _type_of(packed, bits, dtype)
    block = BLOCK_TYPES_BY_NAME[kind]
    nbytes = math.prod(packed.shape) // block.weights * block.block_bytes
    entry = FileEntry(gguf_name, kind, packed.shape, nbytes)
    encode = partial(_encode, kind=kind, name=name)
    return TensorExport(name, packed.shape, packed.format, kind.upper(), (entry,), encode)


def _type_of(packed: PackedTensor, bits: int | None, dtype: str | None) -> str:
    """Return the GGUF type of a matrix."""
    fmt = find_format(packed.format)
    floats = dtype or ("bf16" if packed.format == BF16.name else "f16")
    if packed.format in _OWN_TYPES:
        return _OWN_TYPES[packed.format]
    if packed.format == LIN4.name:
        symmetric = "zeros" not in packed.parts or bool((packed.parts["zeros"] == LIN4.zero).all())
        return "q4_0" if symmetric else "q4_1"
    if packed.format == LIN8.name:
        low, high = _code_range(packed)
        if packed.group_size == BLOCK and low >= _Q5_0_SHIFT - LIN8.zero and high < _Q5_0_SHIFT + 32 - LIN8.zero:
            return "q5_0"
        return "q8_0" if low >= LEAST_LEVEL and high <= MOST_LEVEL else floats
    if bits == LIN4.bits:
        return "q4_1"
    if bits == LIN8.bits or (fmt.group_sizes and has_levels(packed.format)):
        return "q8_0"
    return floats


def _code_range(packed: PackedTensor) -> tuple[int, int]:
    """Return the least and the largest code minus zero point of a lin8 matrix. Stop once q5_0 cannot hold them."""
    low = high = 0
    for rows in _pieces(packed):
        if "zeros" in packed.parts:
            levels, _ = levels_of(rows)
            low, high = min(low, int(levels.min())), max(high, int(levels.max()))
            continue
        codes = rows.parts["codes"]  # the padding rows have the code of the zero point
        low, high = min(low, int(codes.min()) - LIN8.zero), max(high, int(codes.max()) - LIN8.zero)
        if low < _Q5_0_SHIFT - LIN8.zero or high >= _Q5_0_SHIFT + BLOCK - LIN8.zero:
            break  # any code without a stored zero point fits q8_0
    return low, high


def _pieces(packed: PackedTensor) -> Iterator[PackedTensor]:
    for start, stop in row_ranges(packed.shape):
        yield rows_of(packed, start, stop)


def _encode(packed: PackedTensor, kind: str, name: str) -> EncodedRows:
    if BLOCK_TYPES_BY_NAME[kind].weights == 1:
        return encode_floats(packed, kind, name)
    return _ENCODERS[kind](packed, f"tensor {name}: the scale")


def _encode_q4_0(packed: PackedTensor, what: str) -> EncodedRows:
    parts = _parts(packed)
    return EncodedRows((blocks.q4_0(_blocks(parts["codes"]), _scales(packed, parts["scales"])),))


def _encode_q4_1(packed: PackedTensor, what: str) -> EncodedRows:
    if packed.format == MIN4.name:
        parts = _parts(packed)
        factors = [parts[part].reshape(-1) for part in ("scales", "minimums")]
        return EncodedRows((blocks.q4_1(_blocks(parts["codes"]), *factors),))
    if packed.format != LIN4.name:
        packed, _ = quantise(LIN4.name, dequantise(packed), REQUANTISED_GROUP_SIZE)
    parts = _parts(packed)
    scales = _scales(packed, parts["scales"])
    zeros = _scales(packed, parts["zeros"])
    minimums = f32_to_f16(-scales.astype(np.float32) * zeros.astype(np.float32), what)
    codes = _blocks(parts["codes"])
    values = scales.astype(np.float32)[:, None] * codes + minimums.astype(np.float32)[:, None]
    return EncodedRows((blocks.q4_1(codes, scales, minimums),), values.reshape(packed.shape))


def _encode_q5_0(packed: PackedTensor, what: str) -> EncodedRows:
    levels, scales = levels_of(packed)
    codes = (levels + (LIN8.zero - _Q5_0_SHIFT)).astype(np.uint8)
    return EncodedRows((blocks.q5_0(_blocks(codes), scales.astype(np.float16).reshape(-1)),))


def _encode_q8_0(packed: PackedTensor, what: str) -> EncodedRows:
    exact = packed.format == LIN8.name
    if not exact and not has_levels(packed.format):
        packed, _ = quantise(LIN8.name, dequantise(packed), REQUANTISED_GROUP_SIZE)
    levels, scales = levels_of(packed)
    halves = _scales(packed, f32_to_f16(scales, what))
    numbers = _blocks(levels.astype(np.int8))
    encoded = (blocks.q8_0(numbers, halves),)
    if exact:
        return EncodedRows(encoded)
    values: Rows = (numbers.astype(np.float32) * halves.astype(np.float32)[:, None]).reshape(packed.shape)
    return EncodedRows(encoded, values)


def _encode_k(packed: PackedTensor, what: str, pack: Callable[..., blocks.Bytes]) -> EncodedRows:
    parts = _parts(packed)
    codes = parts.pop("codes").reshape(-1, SUPER_BLOCK)
    factors = {
        name: part.reshape(-1) if name.startswith("super") else part.reshape(-1, 8) for name, part in parts.items()
    }
    return EncodedRows((pack(codes, **factors),))


_ENCODERS: dict[str, Callable[[PackedTensor, str], EncodedRows]] = {
    "q4_0": _encode_q4_0,
    "q4_1": _encode_q4_1,
    "q5_0": _encode_q5_0,
    "q8_0": _encode_q8_0,
    "q4_k": partial(_encode_k, pack=blocks.q4_k),
    "q5_k": partial(_encode_k, pack=blocks.q5_k),
    "iq4_nl": _encode_q4_0,
    "iq4_xs": partial(_encode_k, pack=blocks.iq4_xs),
}


def _parts(packed: PackedTensor) -> Parts:
    fmt = find_format(packed.format)
    assert isinstance(fmt, GroupedFormat)
    return fmt.plain_parts(packed)


def _blocks(codes: NDArray[Any]) -> NDArray[Any]:
    """Return (rows, K) as (blocks, 32)."""
    return codes.reshape(-1, BLOCK)


def _scales(packed: PackedTensor, scales: NDArray[Any]) -> NDArray[Any]:
    """Return one value per block of 32 from one per group, (blocks,)."""
    return np.repeat(scales, packed.group_size // BLOCK, axis=1).reshape(-1)
