"""Turning float32 rows into packed tensors, one file per method. Nothing is printed; errors come back as figures.

A format's record names the module that packs it. Such a module has two names: `quantise(form, values, group_size)`, as
`quantise` below but for one format, and `LOOPS`, the compiled functions that it needs
(`quant.quantisers.machine_code.CompiledLoops`), or None.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.formats import PackedTensor, find_format
from quant.quantisers.registry import quantiser_of

__all__ = ["quantise"]


def quantise(name: str, values: NDArray[np.float32], group_size: int) -> tuple[PackedTensor, NDArray[np.float64]]:
    """Pack `values`, a range of rows (rows, K) of a matrix or a whole vector (n,), in format `name`.

    Returns the packed rows and the squared error of each row, summed over its columns: (rows,) or, for a vector, (n,).
    The values must be finite and at most 1e30. Rows are independent of each other, so any split into multiples of 16
    rows gives the same bytes. Raises FormatError for an unknown format or values that it cannot hold.
    """
    packed: tuple[PackedTensor, NDArray[np.float64]] = quantiser_of(name).quantise(
        find_format(name), values, group_size
    )
    return packed
