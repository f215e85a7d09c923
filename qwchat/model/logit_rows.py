"""Logits of single tokens as generation reads them: whole rows, or only the largest ones.

A device need not copy whole rows to the host if it finds the largest logits itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class LargestLogits:
    """The largest logits of a row.

    Attributes:
        ids: token ids, (n,) i64, by descending logit, ascending among equals.
        values: their logits, (n,) f32. Every other token's logit is at most the last one.
    """

    ids: NDArray[np.int64]
    values: NDArray[np.float32]


class LogitRow(Protocol):
    """Logits after one token. It is valid until the next pass over the same cache."""

    def values(self) -> NDArray[np.float32]:
        """Return all logits, (vocab,) f32."""

    def largest(self) -> LargestLogits | None:
        """Return the largest logits, all logits of the row being finite; None if the device has not found them."""


@dataclass(frozen=True, eq=False)
class HostRow:
    """A row of logits that the host has."""

    row: NDArray[np.float32]

    def values(self) -> NDArray[np.float32]:
        """Return all logits, (vocab,) f32."""
        return self.row

    def largest(self) -> None:
        """Return None: finding them takes as long as sampling from all."""
