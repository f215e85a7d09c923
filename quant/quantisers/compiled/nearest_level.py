"""Nearest entry of the codebook of q4."""

from __future__ import annotations

import numpy as np

from quant.native.compiler import inlined
from quant.quantisers.q4 import LOWEST, MIDPOINTS, STEPS


@inlined
def nearest_level(u):
    """Return the table value nearest to u: the lowest value plus every step whose midpoint lies below u.

    The sum is unrolled because a loop over a tuple keeps LLVM from vectorising the outer loop (40 times slower). All
    terms are integers, so the float32 sum is exact in any order.
    """
    zero = np.float32(0)
    return (
        LOWEST
        + (STEPS[0] if u > MIDPOINTS[0] else zero)
        + (STEPS[1] if u > MIDPOINTS[1] else zero)
        + (STEPS[2] if u > MIDPOINTS[2] else zero)
        + (STEPS[3] if u > MIDPOINTS[3] else zero)
        + (STEPS[4] if u > MIDPOINTS[4] else zero)
        + (STEPS[5] if u > MIDPOINTS[5] else zero)
        + (STEPS[6] if u > MIDPOINTS[6] else zero)
        + (STEPS[7] if u > MIDPOINTS[7] else zero)
        + (STEPS[8] if u > MIDPOINTS[8] else zero)
        + (STEPS[9] if u > MIDPOINTS[9] else zero)
        + (STEPS[10] if u > MIDPOINTS[10] else zero)
        + (STEPS[11] if u > MIDPOINTS[11] else zero)
        + (STEPS[12] if u > MIDPOINTS[12] else zero)
        + (STEPS[13] if u > MIDPOINTS[13] else zero)
        + (STEPS[14] if u > MIDPOINTS[14] else zero)
    )


@inlined
def nearest_code(u):
    """Return the index of the table value nearest to u: the number of midpoints below it."""
    one, zero = np.int32(1), np.int32(0)
    return (
        zero
        + (one if u > MIDPOINTS[0] else zero)
        + (one if u > MIDPOINTS[1] else zero)
        + (one if u > MIDPOINTS[2] else zero)
        + (one if u > MIDPOINTS[3] else zero)
        + (one if u > MIDPOINTS[4] else zero)
        + (one if u > MIDPOINTS[5] else zero)
        + (one if u > MIDPOINTS[6] else zero)
        + (one if u > MIDPOINTS[7] else zero)
        + (one if u > MIDPOINTS[8] else zero)
        + (one if u > MIDPOINTS[9] else zero)
        + (one if u > MIDPOINTS[10] else zero)
        + (one if u > MIDPOINTS[11] else zero)
        + (one if u > MIDPOINTS[12] else zero)
        + (one if u > MIDPOINTS[13] else zero)
        + (one if u > MIDPOINTS[14] else zero)
    )
