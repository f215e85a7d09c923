"""Rows laid out in tiles of sixteen, as the compiled loops take them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.formats.format import pad_rows


def padded_rows(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, K) with rows of zeros appended up to a multiple of 16, C-contiguous; no copy where none is needed."""
    return np.ascontiguousarray(pad_rows(values))
