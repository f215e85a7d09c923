"""Rows laid out in tiles of sixteen, as the compiled loops take them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def padded_tiles(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, K) with rows of zeros appended up to a multiple of 16, C-contiguous; no copy where none is needed."""
    missing = -values.shape[0] % 16
    if missing:
        values = np.concatenate([values, np.zeros((missing, values.shape[1]), np.float32)])
    return np.ascontiguousarray(values)
