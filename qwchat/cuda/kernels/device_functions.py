"""Functions that several kernels call: sums over a warp, and groups of 32 values with one value in each lane."""

from __future__ import annotations

from typing import Any

import numpy as np

from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.toolchain import A, F, I, U, cuda, device

_LARGEST = np.float32(np.finfo(np.float32).max)


@device
def warp_sum(value: Any) -> Any:
    """Return the sum of a f32 over the lanes of a warp, in all lanes; lanes 16 apart are added first."""
    value = value + p.shuffle_xor_f(value, U(16))
    value = value + p.shuffle_xor_f(value, U(8))
    value = value + p.shuffle_xor_f(value, U(4))
    value = value + p.shuffle_xor_f(value, U(2))
    return value + p.shuffle_xor_f(value, U(1))


@device
def warp_sum_i(value: Any) -> Any:
    """Return the sum of an i32 over the lanes of a warp, in all lanes."""
    value = I(value + p.shuffle_xor_i(value, U(16)))
    value = I(value + p.shuffle_xor_i(value, U(8)))
    value = I(value + p.shuffle_xor_i(value, U(4)))
    value = I(value + p.shuffle_xor_i(value, U(2)))
    return I(value + p.shuffle_xor_i(value, U(1)))


@device
def warp_max(value: Any) -> Any:
    """Return the largest f32 of the lanes of a warp, in all lanes; NaN is ignored."""
    value = p.max_f(value, p.shuffle_xor_f(value, U(16)))
    value = p.max_f(value, p.shuffle_xor_f(value, U(8)))
    value = p.max_f(value, p.shuffle_xor_f(value, U(4)))
    value = p.max_f(value, p.shuffle_xor_f(value, U(2)))
    return p.max_f(value, p.shuffle_xor_f(value, U(1)))


@device
def _butterfly(value: Any, lane: Any, distance: Any) -> Any:
    other = p.shuffle_xor_f(value, distance)
    return other - value if lane & distance else value + other


@device
def hadamard_32(value: Any, lane: Any) -> Any:
    """Return the Walsh-Hadamard transform of 32 values, one in each lane (u32 `lane`); with the CPU's rounding.

    Transforming twice multiplies by 32.
    """
    value = _butterfly(value, lane, U(16))
    value = _butterfly(value, lane, U(1))
    value = _butterfly(value, lane, U(2))
    value = _butterfly(value, lane, U(4))
    return _butterfly(value, lane, U(8))


@device
def quantise_32(value: Any) -> tuple[Any, Any, Any]:
    """Quantise 32 values, one in each lane: code = rint(value · min(127 / largest, largest float)).

    Returns:
        The lane's code i32, and in all lanes the scale f32 (largest / 127; NaN if a value is not finite) and the sum of
        the codes i32.
    """
    largest = warp_max(p.abs_f(value))
    poison = warp_sum(value * F(0))
    inverse = p.min_f(p.div(F(127), largest), _LARGEST) if largest > F(0) else F(0)
    code = p.round_i(value * inverse)
    return code, p.div(largest, F(127)) + poison, warp_sum_i(code)


@device
def store_quantised(value: Any, x8: Any, xs: Any, column: Any, lane: Any) -> None:
    """Quantise 32 values, one in each lane, and store them as activations.

    Args:
        value: the lane's f32.
        x8: address of the row's codes, i8.
        xs: address of the row's records {f32 scale, i32 sum of codes}.
        column: first of the 32 columns (u32).
        lane: u32.
    """
    code, scale, total = quantise_32(value)
    p.store_u8(x8 + A(U(column + lane)), U(code))
    if lane == U(0):
        p.store_scale(xs + A(column >> U(5)) * A(8), scale, total)


@device
def mma_s8_as_k16(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
    """Return what `mma_s8` (m16n8k32) does, by the smaller products of sm_75."""
    c0, c1 = p.mma_s8_k16(a0, b0, c0, c1)
    c0, c1 = p.mma_s8_k16(a2, b1, c0, c1)
    c2, c3 = p.mma_s8_k16(a1, b0, c2, c3)
    c2, c3 = p.mma_s8_k16(a3, b1, c2, c3)
    return c0, c1, c2, c3


@device
def mma_f16_as_k8(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
    """Return what `mma_f16` (m16n8k16) does up to rounding, by the smaller products of sm_75."""
    c0, c1, c2, c3 = p.mma_f16_k8(a0, a1, b0, c0, c1, c2, c3)
    return p.mma_f16_k8(a2, a3, b1, c0, c1, c2, c3)


@device
def pair_by_pack(low, high):
    """Return two f32 as a pair of halves, by one instruction of sm_80."""
    return p.pack_f16x2(high, low)


@device
def last_block(arrival, blocks, flag, thread):
    """Return whether this block is the last of `blocks` to come here; then all their writes are visible to it.

    Args:
        arrival: global address of a counter i32, 0 before the first block comes and after the last one.
        blocks: i32.
        flag: shared address of 4 bytes.
        thread: u32.
    """
    cuda.syncthreads()
    if thread == U(0):
        p.shared_store1(flag, p.fetch_inc(arrival, U(blocks - 1)))
    cuda.syncthreads()
    return p.shared_load1(flag) == U(blocks - 1)
