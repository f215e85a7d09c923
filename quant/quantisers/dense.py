"""bf16, f32 and vector: store the values unquantised."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import FormatError
from quant.formats.dense import MatrixFormat, VectorFormat
from quant.formats.format import PackedTensor

LOOPS = None


def quantise(
    fmt: MatrixFormat | VectorFormat, values: NDArray[np.float32], group_size: int
) -> tuple[PackedTensor, NDArray[np.float64]]:
    """Pack `values`, (rows, K) or (n,), unquantised. The errors are zero.

    Raises:
        FormatError: `group_size` is not 0, or bf16 would round the values.
    """
    fmt.layout(values.shape, group_size)
    packed = fmt.pack(values) if isinstance(fmt, VectorFormat) else fmt.pack(_as_stored(fmt, values))
    return packed, np.zeros(values.shape[0])


def _as_stored(fmt: MatrixFormat, values: NDArray[np.float32]) -> NDArray[Any]:
    if fmt.dtype == values.dtype:
        return values
    bits = values.view(np.uint32)
    if (bits & np.uint32(0xFFFF)).any():
        raise FormatError(f"format {fmt.name} would round these values, which are not bfloat16")
    return (bits >> np.uint32(16)).astype(fmt.dtype)
