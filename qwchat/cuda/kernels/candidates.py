"""Which tokens may come next: largest logits, their log-sum-exp, and whether all logits are finite.

`candidates` takes one launch of rows · parts blocks of 256 threads; a part is 4,096 logits, 16 neighbours to a thread.
Each block finds the k largest logits of its part; the last block of a row finds the k largest of those. Logits are
compared as integers of the same order. The k-th largest is found bit by bit, by counting; then what exceeds it is
taken, and of its equals those with the lowest ids. The result does not depend on the order of threads or blocks.

Like the sampler, it leaves out ids from `vocab` on, and those that a constraint does not allow; -0 equals 0. Top-k
sampling keeps every token that equals the k-th: whether there are more than k, the host sees from the candidate after
it. Log-sum-exp and finiteness refer to all ids below `vocab`, allowed or not, as on the CPU.

Parameters of `candidates`:
    step: i32[8]: tokens, position, first token whose logits are wanted. Row r is that token + r; others do nothing.
    logits: f32 (rows, stride).
    allowed: u32 (rows, words), bit i of word w is id 32 · w + i; or 0 to allow all.
    lists: scratch, {u32, i32} (rows, parts, 64).
    sums: scratch, f32 (rows, parts, 4).
    arrivals: i32 (rows), zeros; zeros again afterwards.
    values: f32 (rows, 64), written: the k largest logits, descending; -inf where there are fewer.
    ids: i32 (rows, 64), written: their ids, ascending among equals; -1 where there are fewer.
    summaries: f32 (rows, 4), written: largest logit, log-sum-exp, number of logits that are not finite (up to 2^24
        exactly), number of candidates.
    stride: i32, floats of a row of logits, a multiple of 16.
    vocab: i32, at most 262,144.
    words: i32, words of a row of `allowed`.
    parts: i32, ceil(vocab / 4096).
    k: i32, 1 to 64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.block_selection import block_count, block_max, block_sum, select
from qwchat.cuda.kernels.dependent_launch import wait
from qwchat.cuda.kernels.device_functions import last_block, warp_max, warp_sum
from qwchat.cuda.kernels.toolchain import A, F, I, U, cuda, device
from qwchat.cuda.kernels.unit import Kernel, Unit

_THREADS = 256
_EACH = 16
PART = _THREADS * _EACH
MOST = 64
_SHARED_WORDS = 16 + 2 * MOST  # scratch, of which the last word is a flag, then pairs of key and id
_LOG2_E, _LN_2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
_LOWEST = np.float32(-np.inf)
_SIGN = np.uint32(0x80000000)


@device
def _key(value, usable):
    """Return a u32 that is ordered like `value`, and 0 if it is not usable."""
    bits = p.bits_of(value + F(0))  # -0 becomes 0
    key = U(~bits) if bits & _SIGN else U(bits | _SIGN)
    return key if usable else U(0)


@device
def _value(key):
    return p.float_of_bits(U(key ^ _SIGN) if key & _SIGN else U(~key))


@device
def _keys(values, number, usable):
    """Return the keys of four values, whose bits in `usable` are `number` to `number` + 3."""
    return (
        _key(values[0], (usable >> U(number)) & U(1)),
        _key(values[1], (usable >> U(number + 1)) & U(1)),
        _key(values[2], (usable >> U(number + 2)) & U(1)),
        _key(values[3], (usable >> U(number + 3)) & U(1)),
    )


@device
def _strange(value):
    """Return 1 for NaN and infinity, otherwise 0."""
    return I(1) if U(p.bits_of(value) & U(0x7F800000)) == U(0x7F800000) else I(0)


@device
def _statistics(value, wanted, top, total, strange):
    """Add 2^((value - top) · log2(e)) to `total`, and 1 to `strange` if the value is not finite, if it is wanted."""
    added = total + p.ex2_approx((value - top) * _LOG2_E)
    return (added, I(strange + _strange(value))) if wanted else (total, strange)


@device
def _statistics_of_four(values, limit, top):
    """Return the statistics of the first `limit` of four values."""
    total, strange = _statistics(values[0], limit > I(0), top, F(0), I(0))
    total, strange = _statistics(values[1], limit > I(1), top, total, strange)
    total, strange = _statistics(values[2], limit > I(2), top, total, strange)
    return _statistics(values[3], limit > I(3), top, total, strange)


@device
def _largest(values, limit):
    """Return the largest of the first `limit` of four values."""
    top = values[0] if limit > I(0) else _LOWEST
    top = p.max_f(top, values[1]) if limit > I(1) else top
    top = p.max_f(top, values[2]) if limit > I(2) else top
    return p.max_f(top, values[3]) if limit > I(3) else top


@device
def _load(address, limit):
    """Return four floats, or -inf if none of them is wanted."""
    if limit > I(0):
        return p.read4f(address)
    return _LOWEST, _LOWEST, _LOWEST, _LOWEST


@device
def _four(first):
    return I(first), I(first + 1), I(first + 2), I(first + 3)


@device
def _select_part(row_logits, row_allowed, first, vocab, k, sums, scratch, selected, thread):
    """Select the candidates of a part, and write its largest logit, sum of exponentials and count of strange logits."""
    limit = I(vocab - first)
    v0, v1 = _load(row_logits, limit), _load(row_logits + A(16), I(limit - 4))
    v2, v3 = _load(row_logits + A(32), I(limit - 8)), _load(row_logits + A(48), I(limit - 12))
    top = p.max_f(_largest(v0, limit), _largest(v1, I(limit - 4)))
    top = p.max_f(top, p.max_f(_largest(v2, I(limit - 8)), _largest(v3, I(limit - 12))))
    top = block_max(top, scratch, thread)
    t0, n0 = _statistics_of_four(v0, limit, top)
    t1, n1 = _statistics_of_four(v1, I(limit - 4), top)
    t2, n2 = _statistics_of_four(v2, I(limit - 8), top)
    t3, n3 = _statistics_of_four(v3, I(limit - 12), top)
    total = block_sum((t0 + t1) + (t2 + t3), scratch, thread)
    strange = block_count(I(n0 + n1 + n2 + n3), scratch, thread)
    if thread == U(0):
        p.store4f(sums, top, total, F(strange), F(0))
    usable = U(0)
    if limit > I(0):
        usable = U(0xFFFF) if limit >= I(16) else U((U(1) << U(limit)) - U(1))
        if row_allowed != A(0):
            word = p.read1(row_allowed + A(U(first) >> U(5)) * A(4))
            usable = U(usable & U(word >> (U(first) & U(16))))
    keys = (_keys(v0, 0, usable), _keys(v1, 4, usable), _keys(v2, 8, usable), _keys(v3, 12, usable))
    numbers = (_four(first), _four(I(first + 4)), _four(I(first + 8)), _four(I(first + 12)))
    return select(keys, numbers, k, scratch, selected, thread)


@device
def _listed(lists, first, end):
    """Return key and id of four entries of the parts' lists, from entry `first` on."""
    if first >= end:
        return (U(0), U(0), U(0), U(0)), (I(0), I(0), I(0), I(0))
    a, b, c, d = p.read4(lists + A(U(first)) * A(8))
    e, f, g, h = p.read4(lists + A(U(first)) * A(8) + A(16))
    return (a, c, e, g), (I(b), I(d), I(f), I(h))


@device
def _select_row(lists, parts, k, scratch, selected, thread):
    """Select the candidates of a row from those of its parts."""
    first, end = I(I(thread) * 16), I(parts * MOST)
    k0, n0 = _listed(lists, first, end)
    k1, n1 = _listed(lists, I(first + 4), end)
    k2, n2 = _listed(lists, I(first + 8), end)
    k3, n3 = _listed(lists, I(first + 12), end)
    return select((k0, k1, k2, k3), (n0, n1, n2, n3), k, scratch, selected, thread)


@device
def _write_sorted(selected, number, values, ids, thread):
    """Write the selected keys as values, descending; among equals in the order in which they were selected."""
    if thread >= U(MOST):
        return
    place = A(thread) * A(4)
    if I(thread) < number:
        key, one = p.shared_load2(U(selected + thread * U(8)))
        rank = U(0)
        other = U(0)
        while I(other) < number:
            its = p.shared_load1(U(selected + other * U(8)))
            rank = U(rank + U(1)) if its > key or (its == key and other < thread) else rank
            other = U(other + U(1))
        p.store1f(values + A(rank) * A(4), _value(key))
        p.store1i(ids + A(rank) * A(4), I(one))
    else:
        p.store1f(values + place, _LOWEST)
        p.store1i(ids + place, I(-1))


@device
def _summarise(sums, parts, number, summary, thread):
    """Join the parts' largest logits, sums of exponentials and counts, by one warp."""
    if thread >= U(32):
        return
    top, strange = _LOWEST, F(0)
    part = I(thread)
    while part < parts:
        at = sums + A(U(part)) * A(16)
        top, strange = p.max_f(top, p.load1f(at)), strange + p.load1f(at + A(8))
        part = I(part + 32)
    top, strange = warp_max(top), warp_sum(strange)
    total = F(0)
    part = I(thread)
    while part < parts:
        a, b = p.read2f(sums + A(U(part)) * A(16))
        total = total + b * p.ex2_approx((a - top) * _LOG2_E)
        part = I(part + 32)
    total = warp_sum(total)
    if thread == U(0):
        p.store4f(summary, top, top + p.lg2_approx(total) * _LN_2, strange, F(number))


def _candidates_function(target: int) -> Any:
    wait_for_previous = wait(target)

    def candidates(
        step, logits, allowed, lists, sums, arrivals, values, ids, summaries, stride, vocab, words, parts, k
    ):  # fmt: skip
        shared = p.shared_address(p.address_of(cuda.shared.array(_SHARED_WORDS, dtype=F)))
        scratch, selected = shared, U(shared + U(64))
        thread = U(cuda.threadIdx.x)
        part, row = I(U(cuda.blockIdx.x) % U(parts)), I(U(cuda.blockIdx.x) // U(parts))
        wait_for_previous()
        if row >= I(p.read1i(step) - p.read1i(step + A(8))):
            return
        first = I(part * PART + I(thread) * _EACH)
        row_logits = logits + A(U(row)) * A(U(stride)) * A(4) + A(U(first)) * A(4)
        row_allowed = allowed + A(U(row)) * A(U(words)) * A(4) if allowed != A(0) else A(0)
        lists, sums = lists + A(U(row * parts)) * A(8 * MOST), sums + A(U(row * parts)) * A(16)
        number = _select_part(
            row_logits, row_allowed, first, vocab, k, sums + A(U(part)) * A(16), scratch, selected, thread
        )
        if thread < U(MOST):
            key, one = p.shared_load2(U(selected + thread * U(8))) if I(thread) < number else (U(0), U(0))
            p.store2(lists + A(U(part)) * A(8 * MOST) + A(thread) * A(8), key, one)
        if last_block(arrivals + A(U(row)) * A(4), parts, U(scratch + U(60)), thread):
            number = _select_row(lists, parts, k, scratch, selected, thread)
            _write_sorted(selected, number, values + A(U(row)) * A(4 * MOST), ids + A(U(row)) * A(4 * MOST), thread)
            _summarise(sums, parts, number, summaries + A(U(row)) * A(16), thread)

    return candidates


def _gather_function(target: int) -> Any:
    wait_for_previous = wait(target)

    def gather_logits(logits, ids, out, stride, count):
        """Write the logits of `count` ids for each of the rows: `ids` i32 and `out` f32 (rows, count)."""
        wait_for_previous()
        row, place = I(cuda.blockIdx.x), I(cuda.threadIdx.x)
        while place < count:
            at = A(U(row * count + place)) * A(4)
            column = A(U(p.read1i(ids + at)))
            p.store1f(out + at, p.load1f(logits + (A(U(row)) * A(U(stride)) + column) * A(4)))
            place = I(place + _THREADS)

    return gather_logits


def units(target: int) -> list[Unit]:
    """Return the units of this file."""
    kernels = (
        Kernel(_candidates_function(target), "l" * 9 + "i" * 5, _THREADS, 2),
        Kernel(_gather_function(target), "lllii", _THREADS, 2),
    )
    return [Unit("candidates", kernels)]
