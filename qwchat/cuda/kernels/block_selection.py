"""Sums, and the largest of 4,096 keys, over the 256 threads of a block; 16 keys to a thread.

Keys are u32. The k-th largest is found bit by bit, by counting; then what exceeds it is taken, and of its equals the
first ones in the order of the threads.
"""

from __future__ import annotations

import numpy as np

from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.device_functions import warp_max, warp_sum, warp_sum_i
from qwchat.cuda.kernels.toolchain import F, I, U, cuda, device

_WARPS = 8
_SIGN = np.uint32(0x80000000)


@device
def _count_four(keys, threshold):
    return I(
        I(keys[0] >= threshold) + I(keys[1] >= threshold) + I(keys[2] >= threshold) + I(keys[3] >= threshold)
    )  # fmt: skip


@device
def _count(keys, threshold):
    """Return how many of a thread's 16 keys are at least `threshold`."""
    return I(
        _count_four(keys[0], threshold)
        + _count_four(keys[1], threshold)
        + _count_four(keys[2], threshold)
        + _count_four(keys[3], threshold)
    )


@device
def block_count(number, scratch, thread):
    """Return the sum of an i32 over the block's threads; `scratch`: shared address of a word for each warp."""
    number = warp_sum_i(number)
    if thread & U(31) == U(0):
        p.shared_store1i(U(scratch + (thread >> U(5)) * U(4)), number)
    cuda.syncthreads()
    total = I(0)
    for warp in range(_WARPS):
        total = I(total + p.shared_load1i(U(scratch + U(4 * warp))))
    cuda.syncthreads()
    return total


@device
def _threshold(keys, k, scratch, thread):
    """Return the `k`-th largest key of the block; keys are above 0, and there are at least `k`."""
    found, bit = U(0), U(_SIGN)
    while bit != U(0):
        tried = U(found | bit)
        number = block_count(_count(keys, tried), scratch, thread)
        if number >= k:
            found = tried
        bit = U(bit >> U(1)) if number != k else U(0)
    return found


@device
def _before(number, scratch, thread):
    """Return the sum of an i32 over the threads before this one; `scratch`: shared address of a word for each warp."""
    lane, warp = U(thread & U(31)), U(thread >> U(5))
    total = number
    distance = U(1)
    while distance < U(32):
        other = p.shuffle_i(total, U((lane - distance) & U(31)))
        total = I(total + other) if lane >= distance else total
        distance = U(distance << U(1))
    if lane == U(31):
        p.shared_store1i(U(scratch + warp * U(4)), total)
    cuda.syncthreads()
    before = I(total - number)
    for other_warp in range(_WARPS):
        earlier = p.shared_load1i(U(scratch + U(4 * other_warp)))
        before = I(before + earlier) if U(other_warp) < warp else before
    cuda.syncthreads()
    return before


@device
def _take(key, number, threshold, spare, place, selected):
    """Store a key if it is selected; return what `place` and `spare` are afterwards.

    Args:
        key: u32.
        number: i32, stored beside it.
        threshold: smallest key that is selected.
        spare: how many keys that equal it are still selected.
        place: where the next one goes.
        selected: shared address of pairs {key, number}.
    """
    equal = key == threshold
    if key > threshold or (equal and spare > I(0)):
        p.shared_store2(U(selected + U(place) * U(8)), key, U(number))
        place = I(place + I(1))
    return place, I(spare - I(1)) if equal else spare


@device
def _take_four(keys, numbers, threshold, spare, place, selected):
    place, spare = _take(keys[0], numbers[0], threshold, spare, place, selected)
    place, spare = _take(keys[1], numbers[1], threshold, spare, place, selected)
    place, spare = _take(keys[2], numbers[2], threshold, spare, place, selected)
    return _take(keys[3], numbers[3], threshold, spare, place, selected)


@device
def select(keys, numbers, k, scratch, selected, thread):
    """Store the `k` largest keys of the block and their numbers in shared memory, in the order of the threads.

    Returns:
        How many there are: fewer than `k` if there are fewer keys above 0.
    """
    k = p.min_i(k, block_count(_count(keys, U(1)), scratch, thread))
    if k == I(0):
        return k
    threshold = _threshold(keys, k, scratch, thread)
    above = _count(keys, U(threshold + U(1))) if threshold != U(0xFFFFFFFF) else I(0)
    equal = I(_count(keys, threshold) - above)
    spare = I(k - block_count(above, scratch, thread))
    before = _before(I(I(above << 16) + equal), scratch, thread)
    equal_before = I(before & 0xFFFF)
    place = I(I(before >> 16) + p.min_i(equal_before, spare))
    spare = p.max_i(I(spare - equal_before), I(0))
    place, spare = _take_four(keys[0], numbers[0], threshold, spare, place, selected)
    place, spare = _take_four(keys[1], numbers[1], threshold, spare, place, selected)
    place, spare = _take_four(keys[2], numbers[2], threshold, spare, place, selected)
    _take_four(keys[3], numbers[3], threshold, spare, place, selected)
    cuda.syncthreads()
    return k


@device
def block_sum(value, scratch, thread):
    """Return the sum of a f32 over the block's threads, always in the same order."""
    value = warp_sum(value)
    if thread & U(31) == U(0):
        p.shared_store1f(U(scratch + (thread >> U(5)) * U(4)), value)
    cuda.syncthreads()
    total = F(0)
    for warp in range(_WARPS):
        total = total + p.shared_load1f(U(scratch + U(4 * warp)))
    cuda.syncthreads()
    return total


@device
def block_max(value, scratch, thread):
    """Return the largest f32 of the block's threads; NaN is ignored."""
    value = warp_max(value)
    if thread & U(31) == U(0):
        p.shared_store1f(U(scratch + (thread >> U(5)) * U(4)), value)
    cuda.syncthreads()
    top = p.shared_load1f(scratch)
    for warp in range(1, _WARPS):
        top = p.max_f(top, p.shared_load1f(U(scratch + U(4 * warp))))
    cuda.syncthreads()
    return top
