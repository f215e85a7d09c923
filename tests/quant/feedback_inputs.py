"""Inputs and weights for tests of the error feedback."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def correlated_inputs(samples: int, columns: int, seed: int = 0) -> F32:
    """Return inputs (samples, columns) whose columns are correlated and differ in size by a factor of 30."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((columns, columns)) / np.sqrt(columns) * np.geomspace(3, 0.1, columns)[:, None]
    return (random.standard_normal((samples, columns)) @ mix).astype(np.float32)


def second_moments(inputs: F32, others: F32 | None = None) -> F32:
    """Return the mean of x yᵀ over the rows of `inputs` and `others`, which are the inputs themselves if None."""
    exact = inputs.astype(np.float64)
    return (exact.T @ (exact if others is None else others.astype(np.float64)) / len(inputs)).astype(np.float32)


def weights(rows: int, columns: int, seed: int = 0) -> F32:
    """Return weights (rows, columns) with awkward rows: zeros, huge, tiny, subnormal, one-sided, one weight."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, columns)).astype(np.float32)
    values[1] = 0
    values[2] *= 1e29
    values[3] *= 1e-20
    values[4] = np.float32(1e-45)
    values[5] = np.abs(values[5])
    values[6] = 0
    values[6, 40] = -3
    values[7, :32] *= 1000
    values[8] = random.standard_t(2, columns)
    return values
