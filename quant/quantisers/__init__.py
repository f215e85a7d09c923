"""Quantisers: pack float32 rows into tensors, one module per method. They print nothing and return errors as numbers.

A format record names the module that packs the format. The module defines `quantise(fmt, values, group_size)`, which is
`quantise` below for one format, and `LOOPS`: its compiled functions (`quant.quantisers.machine_code.CompiledLoops`) or
None.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.formats import PackedTensor, find_format
from quant.quantisers.registry import quantiser_of

__all__ = ["quantise"]


def quantise(name: str, values: NDArray[np.float32], group_size: int) -> tuple[PackedTensor, NDArray[np.float64]]:
    """Pack rows of a matrix, or a whole vector.

    The rows are independent of each other, so that every split into multiples of 16 rows gives the same bytes.

    Args:
        name: name of the format.
        values: (rows, K) or (n,), finite and at most 1e30.
        group_size: weights per scale, or 0.

    Returns:
        The packed rows, and the squared error of each row summed over its columns: (rows,) or, for a vector, (n,).

    Raises:
        FormatError: the format is unknown or cannot represent the values.
    """
    packed: tuple[PackedTensor, NDArray[np.float64]] = quantiser_of(name).quantise(
        find_format(name), values, group_size
    )
    return packed
