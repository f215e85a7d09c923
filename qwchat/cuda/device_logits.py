"""Rows of logits that stay on the device: the host reads the largest ones, and a whole row when it is asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qwchat.cuda.workspace import CudaWorkspace
from qwchat.model.logit_rows import LargestLogits, LogitRow


class PassLogits:
    """Logits of the last pass of a decoder, up to DECODE_ROWS rows.

    Args:
        space: the buffers of the decoder.
        rows: number of rows.
        fetch: copies all rows to the host's copy in `space`. Raises RuntimeError if another pass has run since.
    """

    def __init__(self, space: CudaWorkspace, rows: int, fetch: Callable[[], None]) -> None:
        self._space, self._fetch = space, fetch
        self._values: NDArray[np.float32] | None = None
        self._largest = [_largest(space, row) for row in range(rows)]
        self._count = rows

    def rows(self) -> list[LogitRow]:
        """Return the rows."""
        return [DeviceRow(self, index) for index in range(self._count)]

    def values(self, row: int) -> NDArray[np.float32]:
        """Return all logits of a row, (vocab,) f32."""
        if self._values is None:
            self._fetch()
            self._values = self._space.logits[: self._count].copy()
        values: NDArray[np.float32] = self._values[row]
        return values

    def largest(self, row: int) -> LargestLogits | None:
        """Return the largest logits of a row; None if one of its logits is not finite."""
        return self._largest[row]


class DeviceRow:
    """A row of logits on the device. It implements `qwchat.model.logit_rows.LogitRow`."""

    def __init__(self, logits: PassLogits, index: int) -> None:
        self._logits, self._index = logits, index

    def values(self) -> NDArray[np.float32]:
        """Return all logits, (vocab,) f32."""
        return self._logits.values(self._index)

    def largest(self) -> LargestLogits | None:
        """Return the largest logits, or None if one is not finite."""
        return self._logits.largest(self._index)


def _largest(space: CudaWorkspace, row: int) -> LargestLogits | None:
    """Return what the device found in a row; see `qwchat/cuda/kernels/candidates.py`."""
    values, ids, summary = (each[row] for each in space.candidates)
    not_finite, count = int(summary[2]), int(summary[3])
    if not_finite or not count:
        return None
    return LargestLogits(ids[:count].astype(np.int64), values[:count].copy())
