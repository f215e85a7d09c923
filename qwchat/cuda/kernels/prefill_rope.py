"""RoPE of prefill: normalise and rotate queries and keys, and append keys and values to an f16 or 8-bit cache.

A warp has one head of one token: a query head, a key or a value. A lane has dimension `lane` of every 32, so it
rotates without other lanes, and 32 lanes hold the 32 dimensions of a Walsh-Hadamard transform. Without a norm,
rotation, transform and codes are those of the CPU's kernels bit for bit; with one, its sum is in another order.
"""

from __future__ import annotations

import numpy as np

from qwchat.cuda.kernels import instructions as p
from qwchat.cuda.kernels.toolchain import A, F, I, U, cuda, device
from qwchat.cuda.kernels.unit import Kernel, Unit

_THREADS = 256
_WARPS = _THREADS // 32
_QUERY, _KEY, _VALUE = 0, 1, 2
_INVERSE_32 = np.float32(1 / 32)
_INT8_MAX = np.float32(127)
_MAGNITUDE = np.uint32(0x7FFFFFFF)


@device
def _item(heads, kv_heads):
    """Return token, role and number of this warp's head."""
    slots = U(heads + 2 * kv_heads)
    item = U(U(cuda.blockIdx.x) * U(_WARPS) + U(U(cuda.threadIdx.x) >> U(5)))
    token = p.divide_u(item, slots)
    slot = I(item - U(token * slots))
    if slot < heads:
        return I(token), I(_QUERY), slot
    if slot < heads + kv_heads:
        return I(token), I(_KEY), I(slot - heads)
    return I(token), I(_VALUE), I(slot - heads - kv_heads)


@device
def _root(x_at, weight, head_dim, epsilon):
    """Return 1 / sqrt(mean square + epsilon) of one head, or 1 if `weight` is 0."""
    if weight == A(0):
        return F(1)
    total = F(0)
    for dim in range(0, head_dim, 32):
        x = p.load1f(x_at + A(4 * dim))
        total += x * x
    total += p.shuffle_xor_f(total, U(16))
    total += p.shuffle_xor_f(total, U(8))
    total += p.shuffle_xor_f(total, U(4))
    total += p.shuffle_xor_f(total, U(2))
    total += p.shuffle_xor_f(total, U(1))
    return p.div(F(1), p.sqrt(p.div(total, F(head_dim)) + epsilon))


@device
def _head(qkv, q_norm, k_norm, cos, sin, key_offset, item, position, qkv_stride, heads, kv_heads, head_dim, epsilon):
    """Return what `_dimensions` needs: addresses of this lane's first dimension, and the factor of the norm."""
    token, role, number = item
    lane, half = I(cuda.threadIdx.x & 31), I(head_dim >> 1)
    slot, weight, offset = number, A(0), A(0)
    if role == _QUERY:
        weight = q_norm
    elif role == _KEY:
        slot, weight = I(heads + number), k_norm
        if key_offset != A(0):
            offset = key_offset + A(4 * (number * head_dim + lane))
    else:
        slot = I(heads + kv_heads + number)
    x_at = qkv + A(4) * (A(token) * A(qkv_stride) + A(slot * head_dim + lane))
    root = _root(x_at, weight, head_dim, epsilon)
    if weight != A(0):
        weight += A(4 * lane)
    angle = A(4) * (A(position) * A(half) + A(lane))
    return x_at, weight, root, cos + angle, sin + angle, offset, half


@device
def _dimensions(head, role, first, query_scale):
    """Return the dimensions `first` + lane and `first` + lane + head_dim/2, ready for the cache or for attention."""
    x_at, weight, root, cos_at, sin_at, offset, half = head
    below, above = A(4 * first), A(4 * (first + half))
    low, high = p.load1f(x_at + below), p.load1f(x_at + above)
    if role == _VALUE:
        return low, high
    if weight != A(0):
        low, high = (low * p.load1f(weight + below)) * root, (high * p.load1f(weight + above)) * root
    c, s = p.load1f(cos_at + below), p.load1f(sin_at + below)
    low, high = low * c - high * s, high * c + low * s
    if role == _QUERY:
        return low * query_scale, high * query_scale
    if offset != A(0):
        return low - p.load1f(offset + below), high - p.load1f(offset + above)
    return low, high


@device
def _query_at(queries, token, number, heads, head_dim):
    """Return the address of this lane's first dimension of a query."""
    return queries + A(2) * ((A(token) * A(heads) + A(number)) * A(head_dim) + A(cuda.threadIdx.x & 31))


def rope_append_f16(
    qkv, q_norm, k_norm, cos, sin, step, key_offset, queries, keys, values,
    qkv_stride, heads, kv_heads, head_dim, capacity, epsilon, query_scale,
):  # fmt: skip
    """Normalise and rotate queries and keys, and append keys and values to an f16 cache.

    Grid: ceil(tokens * (heads + 2 * kv_heads) / 8) blocks.

    Args:
        qkv: (tokens, qkv_stride) f32: queries, keys, values.
        q_norm: (head_dim) f32, or 0 for families without it.
        k_norm: as `q_norm`.
        cos: (context, head_dim/2) f32.
        sin: as `cos`.
        step: tokens and position of the first.
        key_offset: (kv_heads * head_dim) f32, or 0.
        queries: (tokens, heads, head_dim) f16, written.
        keys: (kv_heads, capacity, head_dim) f16; the positions of the tokens are written.
        values: as `keys`.
        qkv_stride: floats per token.
        heads: query heads.
        kv_heads: heads of keys and values.
        head_dim: 64 or 128.
        capacity: positions.
        epsilon: of the norms.
        query_scale: log2(e) / sqrt(head_dim), so that scores are exponents of 2.
    """
    token, role, number = _item(heads, kv_heads)
    if token < p.read1i(step):
        position = I(p.read1i(step + A(4)) + token)
        head = _head(
            qkv, q_norm, k_norm, cos, sin, key_offset, (token, role, number), position,
            qkv_stride, heads, kv_heads, head_dim, epsilon,
        )  # fmt: skip
        target = keys if role == _KEY else values
        target += A(2) * ((A(number) * A(capacity) + A(position)) * A(head_dim) + A(cuda.threadIdx.x & 31))
        if role == _QUERY:
            target = _query_at(queries, token, number, heads, head_dim)
        half = I(head_dim >> 1)
        for first in range(0, half, 32):
            low, high = _dimensions(head, role, first, query_scale)
            p.store_u16(target + A(2 * first), p.half_of(low))
            p.store_u16(target + A(2 * (first + half)), p.half_of(high))


@device
def _butterfly(x, distance):
    """Return one stage of the transform of 32 lanes."""
    other = p.shuffle_xor_f(x, U(distance))
    return other - x if cuda.threadIdx.x & distance else other + x


@device
def _hadamard(x):
    """Return the Walsh-Hadamard transform of 32 lanes, with additions in the order of the CPU's kernels."""
    return _butterfly(_butterfly(_butterfly(_butterfly(_butterfly(x, 16), 1), 2), 4), 8)


@device
def _append_32(x, codes, scale_at):
    """Transform 32 dimensions, one per lane, and store them as 8-bit codes with an f16 scale; NaN if not finite."""
    x = _hadamard(x)
    bits = U(p.bits_of(x) & _MAGNITUDE)
    bits = p.max_u(bits, p.shuffle_xor(bits, U(16)))
    bits = p.max_u(bits, p.shuffle_xor(bits, U(8)))
    bits = p.max_u(bits, p.shuffle_xor(bits, U(4)))
    bits = p.max_u(bits, p.shuffle_xor(bits, U(2)))
    largest = p.float_of_bits(p.max_u(bits, p.shuffle_xor(bits, U(1))))
    scale = p.half_of(p.div(largest, _INT8_MAX) + (largest - largest))
    width, inverse = p.float_of_half(scale), F(0)
    if width > F(0):
        inverse = p.div(F(1), width)
    code = p.max_i(p.min_i(p.round_i(x * inverse), I(127)), I(-127))
    p.store_u8(codes, U(code))
    if cuda.threadIdx.x & 31 == 0:
        p.store_u16(scale_at, scale)


def rope_append_q8(
    qkv, q_norm, k_norm, cos, sin, step, key_offset, queries, keys, key_scales, values, value_scales,
    qkv_stride, heads, kv_heads, head_dim, capacity, epsilon, query_scale,
):  # fmt: skip
    """Do as `rope_append_f16` for an 8-bit cache, with the Walsh-Hadamard transform of queries, keys and values.

    Grid and parameters are those of `rope_append_f16`, except:

    Args:
        qkv: there.
        q_norm: there.
        k_norm: there.
        cos: there.
        sin: there.
        step: there.
        key_offset: there.
        queries: transformed, times 1/32.
        keys: (kv_heads, capacity, head_dim) i8.
        key_scales: (kv_heads, capacity, head_dim/32) f16.
        values: as `keys`.
        value_scales: as `key_scales`.
        qkv_stride: there.
        heads: there.
        kv_heads: there.
        head_dim: there.
        capacity: there.
        epsilon: there.
        query_scale: there.
    """
    token, role, number = _item(heads, kv_heads)
    if token < p.read1i(step):
        position = I(p.read1i(step + A(4)) + token)
        head = _head(
            qkv, q_norm, k_norm, cos, sin, key_offset, (token, role, number), position,
            qkv_stride, heads, kv_heads, head_dim, epsilon,
        )  # fmt: skip
        row = A(number) * A(capacity) + A(position)
        codes = (keys if role == _KEY else values) + row * A(head_dim) + A(cuda.threadIdx.x & 31)
        scales = (key_scales if role == _KEY else value_scales) + row * A(head_dim >> 4)
        half = I(head_dim >> 1)
        for first in range(0, half, 32):
            low, high = _dimensions(head, role, first, query_scale)
            if role == _QUERY:
                target = _query_at(queries, token, number, heads, head_dim) + A(2 * first)
                p.store_u16(target, p.half_of(_hadamard(low) * _INVERSE_32))
                p.store_u16(target + A(head_dim), p.half_of(_hadamard(high) * _INVERSE_32))
            else:
                _append_32(low, codes + A(first), scales + A(first >> 4))
                _append_32(high, codes + A(first + half), scales + A((first + half) >> 4))


def units(target: int) -> list[Unit]:
    """Return the unit `prefill_rope`."""
    halves = Kernel(rope_append_f16, 10 * "l" + 5 * "i" + "ff", _THREADS, 4)
    codes = Kernel(rope_append_q8, 12 * "l" + 5 * "i" + "ff", _THREADS, 4)
    return [Unit("prefill_rope", (halves, codes))]
