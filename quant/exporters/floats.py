"""Store the values of tensors as bf16, f16 or f32."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import FormatError
from quant.exporters.export_plan import EncodedRows
from quant.formats import PackedTensor, dequantise
from quant.formats.dense import bf16_to_f32
from quant.sources.source import Rows

ITEM_BYTES = {"bf16": 2, "f16": 2, "f32": 4}
_MAX_F16 = 65504.0
_F16_OVERFLOW = 65520.0  # The smallest value that rounds to infinity.


def f32_to_bf16(values: Rows) -> NDArray[np.uint16]:
    """Return bfloat16 bits, rounded to nearest, ties to even. The values are finite and at most 1e30."""
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)


def f32_to_f16(values: Rows, what: str) -> NDArray[np.float16]:
    """Return float16 values, rounded to nearest, ties to even.

    Raises:
        FormatError: a value is too large. `what` names it in the message.
    """
    peak = float(np.abs(values).max(initial=0.0))
    if not peak < _F16_OVERFLOW:
        raise FormatError(f"{what} {peak:.3g} exceeds the range of float16, {_MAX_F16:.0f}; export as bf16 or f32")
    return values.astype(np.float16)


def round_to(values: Rows, dtype: str, what: str) -> tuple[NDArray[Any], Rows]:
    """Return values as stored in type `dtype`, and what they then are in float32.

    Raises:
        FormatError: float16 cannot hold a value. `what` names it in the message.
    """
    if dtype == "f32":
        return values, values
    if dtype == "bf16":
        bits = f32_to_bf16(values)
        return bits, bf16_to_f32(bits)
    halves = f32_to_f16(values, what)
    return halves, halves.astype(np.float32)


def encode_floats(packed: PackedTensor, dtype: str, name: str) -> EncodedRows:
    """Encode rows of tensor `name` as `dtype`."""
    values = dequantise(packed)
    stored, rounded = round_to(values, dtype, f"tensor {name}: the weight")
    return EncodedRows((stored,), None if dtype == "f32" else rounded)


def float_encoder(dtype: str, name: str) -> partial[EncodedRows]:
    """Return the function that encodes tensor `name` as `dtype`."""
    return partial(encode_floats, dtype=dtype, name=name)
