"""Padding of rows to whole tiles, as the compiled loops expect them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.formats.format import pad_rows


def padded_rows(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Append rows of zeros to (rows, K) up to a multiple of 16. The result is C-contiguous; copy only if needed."""
    return np.ascontiguousarray(pad_rows(values))
