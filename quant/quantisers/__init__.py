"""Turning float32 rows into packed tensors, one file per method. Nothing is printed; errors come back as figures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.errors import FormatError
from quant.formats import FORMATS, dense
from quant.formats.base import PackedTensor

__all__ = ["quantise"]


def quantise(name: str, values: NDArray[np.float32], group_size: int) -> tuple[PackedTensor, NDArray[np.float64]]:
    """Pack `values`, a range of rows (rows, K) of a matrix or a whole vector (n,), in format `name`.

    Returns the packed rows and the squared error of each row, summed over its columns: (rows,) or, for a vector, (n,).
    The values must be finite and at most 1e30. Rows are independent of each other, so any split into multiples of 16
    rows gives the same bytes. Raises FormatError for an unknown format or values that it cannot hold.
    """
    # Imported here: the compiler takes half a second to load, and dense tensors need none.
    if name == "q4":
        from quant.quantisers import q4

        return q4.quantise(values)
    if name == "q8":
        from quant.quantisers import q8

        return q8.quantise(values)
    if name in ("lin4", "lin8"):
        from quant.quantisers import linear

        return linear.quantise(name, values, group_size)
    if name not in FORMATS:
        raise FormatError(f"unknown tensor format {name!r}; known are {', '.join(FORMATS)}")
    return _keep(name, values), np.zeros(values.shape[0])


def _keep(name: str, values: NDArray[np.float32]) -> PackedTensor:
    if name != "bf16":
        return dense.pack(name, values)
    bits = values.view(np.uint32)
    if (bits & np.uint32(0xFFFF)).any():
        raise FormatError("format bf16 keeps values that are bfloat16 already; these have more digits")
    return dense.pack(name, (bits >> np.uint32(16)).astype(np.uint16))
