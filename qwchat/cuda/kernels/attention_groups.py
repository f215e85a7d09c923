"""What a warp of decode attention does with 16 positions: load, score, weigh, add.

Positions before the pass need no masks. Groups with positions of the pass are done once for each token of the row tile,
with the rows of that token alone: a weight of 0 would not do, because 0 times a later token's infinity is NaN.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from qwchat.cuda.kernels import attention_rows
from qwchat.cuda.kernels import device_functions as shared_functions
from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.attention_merge import WARPS
from qwchat.cuda.kernels.attention_source import Shape, function_texts
from qwchat.cuda.kernels.toolchain import A, F, I, U, device

THREADS = 32 * WARPS
GROUP = 16
"""Positions of a warp in a tile."""
TILE = GROUP * WARPS
"""Positions of a block in a tile."""

_HIDDEN = np.float32(-np.inf)
_NOTHING = np.float32(-1e38)  # exponent before the first position
_TAIL = np.float32(15)  # weights are up to 2^15, so that small ones do not vanish in f16


def device_functions_of(shape: Shape, target: int) -> SimpleNamespace:
    """Return the device functions of a shape for a target."""
    f = SimpleNamespace(**_generated(shape, target))
    for name in ("query", "store_key", "store_value"):
        setattr(f, name, getattr(attention_rows, f"{name}_{shape.kind}"))
    f.weigh = _weigh_function(f, target)
    f.prefetch = _prefetch_function(shape)
    f.cached = _cached_function(f, shape)
    f.own_group = _own_group_function(f, shape)
    f.own = _own_function(f)
    return f


@device
def _exact(total):
    """Return a sum of integer products as f32; it was added to the bits of 1.5 · 2^23, whose last bit counts ones."""
    return p.float_of_bits(U(total)) - F(12582912)


def _generated(shape: Shape, target: int) -> dict[str, Any]:
    """Return the functions that are made from text."""
    old = target < 80
    space: dict[str, Any] = {
        "A": A,
        "F": F,
        "I": I,
        "U": U,
        "p": p,
        "exact": _exact,
        "ROUNDER": np.int32(0x4B400000),
        "mma_s8": shared_functions.mma_s8_as_k16 if old else p.mma_s8,
        "mma_f16": shared_functions.mma_f16_as_k8 if old else p.mma_f16,
    }
    found = {}
    for name, text in function_texts(shape).items():
        exec(compile(text, name, "exec"), space)
        found[name] = device(space[name])
    return found


@device
def _row_max(a, b, c, d):
    """Return the largest of a row's scores: four in each of four neighbouring lanes."""
    top = p.max_f(p.max_f(a, b), p.max_f(c, d))
    top = p.max_f(top, p.shuffle_xor_f(top, U(1)))
    return p.max_f(top, p.shuffle_xor_f(top, U(2)))


def _weigh_function(f: SimpleNamespace, target: int) -> Any:
    scale_sums, pair_of = f.scale_sums, p.pair_of if target < 80 else shared_functions.pair_by_pack

    @device
    def split(a, b):
        """Return two weights as a pair of halves, and what these round off as another pair."""
        pair = pair_of(a, b)
        first, second = p.floats_of_pair(pair)
        return pair, pair_of(a - first, b - second)

    @device
    def weigh(scores, state):
        """Turn scores into weights; scale the sums if a row's largest score grew.

        Returns:
            Weights as four pairs of halves and four pairs of what these round off, and the new state: exponents, sums
            of weights, weighted sums.
        """
        s0, s1, s2, s3, s4, s5, s6, s7 = scores
        shift0, shift1, total0, total1, sums = state
        new0 = p.max_f(shift0, _row_max(s0, s1, s4, s5) - _TAIL)
        new1 = p.max_f(shift1, _row_max(s2, s3, s6, s7) - _TAIL)
        if new0 > shift0 or new1 > shift1:
            old0, old1 = p.ex2_approx(shift0 - new0), p.ex2_approx(shift1 - new1)
            total0, total1 = total0 * old0, total1 * old1
            sums = scale_sums(sums, old0, old1)
        w0, w1 = p.ex2_approx(s0 - new0), p.ex2_approx(s1 - new0)
        w2, w3 = p.ex2_approx(s2 - new1), p.ex2_approx(s3 - new1)
        w4, w5 = p.ex2_approx(s4 - new0), p.ex2_approx(s5 - new0)
        w6, w7 = p.ex2_approx(s6 - new1), p.ex2_approx(s7 - new1)
        total0 = total0 + ((w0 + w1) + (w4 + w5))
        total1 = total1 + ((w2 + w3) + (w6 + w7))
        first, second = split(w0, w1), split(w2, w3)
        third, fourth = split(w4, w5), split(w6, w7)
        weights = (first[0], second[0], third[0], fourth[0], first[1], second[1], third[1], fourth[1])
        return weights, (new0, new1, total0, total1, sums)

    return weigh


def _prefetch_function(shape: Shape) -> Any:
    row_bytes, lines = shape.row_bytes, GROUP * shape.row_bytes // 128

    @device
    def prefetch(keys, values, base, end, lane):
        """Bring the 16 positions from `base` on to the second-level cache, if all of them are below `end`."""
        if I(base + GROUP) <= end and lane < U(lines):
            at = A(U(base)) * A(row_bytes) + A(lane) * A(128)
            p.prefetch_l2(keys + at)
            p.prefetch_l2(values + at)

    return prefetch


def _cached_function(f: SimpleNamespace, shape: Shape) -> Any:
    load_keys, load_values, load_scales, scales_of_values = (
        f.load_keys,
        f.load_values,
        f.load_scales,
        f.scales_of_values,
    )
    score, weigh, add_values, prefetch = f.score, f.weigh, f.add_values, f.prefetch
    row_bytes, zeros = shape.row_bytes, (np.float32(0),) * (4 * shape.tiles)

    @device
    def cached(cache, base, stride, position, fragments, steps, lane):
        """Attend to the warp's positions before those of the pass.

        Returns:
            The first position that is left, and the state.
        """
        keys, key_scales, values, value_scales = cache
        g, c = I(lane >> U(2)), I(lane & U(3))
        state = (_NOTHING, _NOTHING, F(0), F(0), zeros)
        while I(base + GROUP) <= position:
            prefetch(keys, values, I(base + stride), position, lane)
            n = I(base + 2 * c)
            key, value = keys + A(U(base + g)) * A(row_bytes), values + A(U(n)) * A(row_bytes)
            k = load_keys(key, key + A(8 * row_bytes), c)
            key_steps = load_scales(key_scales, n, I(n + 8))
            v = load_values(value, value + A(row_bytes), value + A(8 * row_bytes), value + A(9 * row_bytes), g)
            scale0, scale1 = scales_of_values(load_scales(value_scales, n, I(n + 8)), g)
            weights, state = weigh(score(k, key_steps, fragments, steps, g, lane), state)
            shift0, shift1, total0, total1, sums = state
            state = (shift0, shift1, total0, total1, add_values(sums, v, scale0, scale1, weights))
            base = I(base + stride)
        return base, state

    return cached


@device
def _visible(score, mine, position, limit):
    return score if mine and position <= limit else _HIDDEN


@device
def _visible_scores(scores, mine0, mine1, n, limit):
    s0, s1, s2, s3, s4, s5, s6, s7 = scores
    return (
        _visible(s0, mine0, n, limit),
        _visible(s1, mine0, I(n + 1), limit),
        _visible(s2, mine1, n, limit),
        _visible(s3, mine1, I(n + 1), limit),
        _visible(s4, mine0, I(n + 8), limit),
        _visible(s5, mine0, I(n + 9), limit),
        _visible(s6, mine1, I(n + 8), limit),
        _visible(s7, mine1, I(n + 9), limit),
    )


@device
def _at(places, position, number, row_bytes):
    """Return the address of a position: in the cache, or in the block's scratch from the pass's first position on.

    `places`: addresses of position 0 in both.
    """
    return (places[0] if number < position else places[1]) + A(U(number)) * A(row_bytes)


def _own_group_function(f: SimpleNamespace, shape: Shape) -> Any:
    load_keys, load_values, load_scales = f.load_keys, f.load_values, f.load_own_scales
    score, weigh, add_own_values, scales_of_values = f.score, f.weigh, f.add_own_values, f.scales_of_values
    size, scale_size = shape.row_bytes, shape.scale_bytes

    @device
    def own_group(cache, base, position, limit, mine0, mine1, fragments, steps, lane, state):
        """Attend from the rows of one token to those of 16 positions that are at most `limit`."""
        keys, key_scales, values, value_scales = cache
        g, c = I(lane >> U(2)), I(lane & U(3))
        n = I(base + 2 * c)
        # A position beyond the limit is replaced by the last one; its weight is 0.
        n0, n1, n2, n3 = p.min_i(n, limit), p.min_i(I(n + 1), limit), p.min_i(I(n + 8), limit), p.min_i(I(n + 9), limit)
        key0 = _at(keys, position, p.min_i(I(base + g), limit), size)
        k = load_keys(key0, _at(keys, position, p.min_i(I(base + g + 8), limit), size), c)
        key_steps = load_scales(
            _at(key_scales, position, n0, scale_size),
            _at(key_scales, position, n1, scale_size),
            _at(key_scales, position, n2, scale_size),
            _at(key_scales, position, n3, scale_size),
        )
        v = load_values(
            _at(values, position, n0, size),
            _at(values, position, n1, size),
            _at(values, position, n2, size),
            _at(values, position, n3, size),
            g,
        )
        value_steps = load_scales(
            _at(value_scales, position, n0, scale_size),
            _at(value_scales, position, n1, scale_size),
            _at(value_scales, position, n2, scale_size),
            _at(value_scales, position, n3, scale_size),
        )
        scale0, scale1 = scales_of_values(value_steps, g)
        scores = _visible_scores(score(k, key_steps, fragments, steps, g, lane), mine0, mine1, n, limit)
        weights, state = weigh(scores, state)
        shift0, shift1, total0, total1, sums = state
        sums = add_own_values(sums, v, scale0, scale1, weights, mine0, mine1)
        return shift0, shift1, total0, total1, sums

    return own_group


def _own_function(f: SimpleNamespace) -> Any:
    own_group = f.own_group

    @device
    def own(cache, base, stride, position, last, first_row, rows, group, fragments, steps, lane, state):
        """Attend to the warp's positions from `base` on: the last ones of the cache, and those of the pass.

        `cache`: addresses of position 0, of keys, key scales, values and value scales; each in the cache and as if the
        block's scratch began there.
        """
        g = I(lane >> U(2))
        token0, token1 = I(U(first_row + g) // U(group)), I(U(first_row + g + 8) // U(group))
        first_token, last_token = I(U(first_row) // U(group)), I(U(first_row + rows - 1) // U(group))
        while base <= last:
            token = first_token
            while token <= last_token:
                limit = I(position + token)
                if base <= limit:
                    state = own_group(
                        cache, base, position, limit, token == token0, token == token1, fragments, steps, lane, state
                    )
                token = I(token + 1)
            base = I(base + stride)
        return state

    return own
