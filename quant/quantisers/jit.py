"""The one place that sets Numba's options for the quantisers.

No fast-math: a reassociated sum would give other codes on another machine, and conversion is to be reproducible byte
for byte. The loops vectorise without it, because sixteen rows lie side by side and each lane sums its own group in
order. `nogil` lets a few Python threads share the work; the code is cached on disk. Constants of a format come in as
arguments, because Numba's cache does not notice edits in other files.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` when it is first called; keep the code on disk where some folder can be written."""
    compiled: Any = numba.njit(nogil=True, error_model="numpy", boundscheck=False)(function)
    with suppress(RuntimeError):  # no folder for it: then every process compiles for itself
        compiled.enable_caching()
    return compiled


def padded_tiles(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, K) with rows of zeros appended up to a multiple of 16, C-contiguous; no copy where none is needed."""
    missing = -values.shape[0] % 16
    if missing:
        values = np.concatenate([values, np.zeros((missing, values.shape[1]), np.float32)])
    return np.ascontiguousarray(values)
