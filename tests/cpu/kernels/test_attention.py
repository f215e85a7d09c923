"""Attention over both kinds of cache, compared with its NumPy twin."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from qwchat.cpu.kernels import attention, reference
from qwchat.cpu.kernels.hadamard import hadamard
from qwchat.cpu.kernels.records import (
    ATTENTION_ROWS,
    ATTENTION_SCRATCH_BYTES,
    CACHE,
    KV_KINDS,
    PARTIAL_HEADER_BYTES,
    QUERIES,
    SPLIT_POSITIONS,
)
from tests.cpu.kernels.numba_cached import kernel
from tests.cpu.kernels.random_tensors import aligned

KINDS = tuple(KV_KINDS)
SHAPES = [(4, 2, 64), (7, 1, 64), (6, 6, 32), (8, 1, 128), (14, 2, 64), (20, 2, 32)]


@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_rotate(head_dim: int) -> None:
    rng = np.random.default_rng(head_dim)
    x = rng.standard_normal(head_dim).astype(np.float32)
    angle = rng.uniform(0, 6, head_dim // 2)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    expected = reference.rotate(x, cos, sin) * np.float32(0.5)
    out = np.empty_like(x)
    addresses = [array.ctypes.data for array in (x, cos, sin, out)]
    attention.rotate(*addresses, head_dim, np.float32(0.5))
    assert np.allclose(out, expected, rtol=1e-6, atol=1e-6)
    attention.rotate(*addresses[:3], addresses[0], head_dim, np.float32(0.5))
    assert np.array_equal(x, out)


def test_hadamard() -> None:
    x = np.random.default_rng(1).standard_normal(96).astype(np.float32)
    expected = reference.hadamard(x)
    out = x.copy()
    hadamard(out.ctypes.data, 96, np.float32(1))
    assert np.allclose(out, expected, rtol=1e-5, atol=1e-5)
    hadamard(out.ctypes.data, 96, np.float32(1 / 32))
    assert np.allclose(out, x, rtol=1e-5, atol=1e-5)


@kernel
def _fill(caches, positions, keys, values, scratch):  # type: ignore[no-untyped-def]
    cache = caches[0]
    for position in range(positions):
        for head in range(cache.num_kv_heads):
            offset = (position * cache.num_kv_heads + head) * cache.head_dim * 4
            attention.store_key(cache, head, position, keys + offset, scratch)
            attention.store_value(cache, head, position, values + offset, scratch)


@kernel
def _store_queries(records, kind, kv_heads, rows, head_dim):  # type: ignore[no-untyped-def]
    for kv_head in range(kv_heads):
        for row in range(rows):
            attention.store_query(records[0], kind, kv_head, row, head_dim)


@kernel
def _attend(caches, records, rows, position, end, scratch, totals, partial, out):  # type: ignore[no-untyped-def]
    cache = caches[0]
    stride = attention.partial_stride(cache)
    for kv_head in range(cache.num_kv_heads):
        for row in range(0, rows, ATTENTION_ROWS):
            for start in range(0, end, SPLIT_POSITIONS):
                target = totals if start == 0 else partial
                stop = min(end, start + SPLIT_POSITIONS)
                count = min(ATTENTION_ROWS, rows - row)
                first = row == 0
                attention.attend_rows(
                    cache, records[0], kv_head, row, count, position, start, stop, first, scratch, target
                )
                if start > 0:
                    for index in range(count):
                        attention.merge(totals + index * stride, partial + index * stride, cache.head_dim)
            for index in range(min(ATTENTION_ROWS, rows - row)):
                target = out + (kv_head * rows + row + index) * cache.head_dim * 4
                attention.normalise(cache, totals + index * stride, target)


class Cache:
    """A cache of one layer, filled with the kernels' own store functions."""

    def __init__(self, kind: str, heads: int, kv_heads: int, head_dim: int, keys: Any, values: Any) -> None:
        self.kind, self.heads, self.kv_heads, self.head_dim = kind, heads, kv_heads, head_dim
        self.positions = len(keys)
        self.capacity = -(-self.positions // SPLIT_POSITIONS) * SPLIT_POSITIONS
        count = kv_heads * self.capacity * head_dim
        # Memory that was never written must not matter, whatever finite numbers it holds.
        fill = np.frombuffer(np.float32(1e30).tobytes(), np.uint8)[-1]
        self.k, self.v = (aligned(count * 4, fill) for _ in range(2))
        self.k_scales, self.v_scales = (aligned(count // 16, 0x70) for _ in range(2))
        self.offset = np.random.default_rng(7).standard_normal(kv_heads * head_dim).astype(np.float32)
        self.record = np.zeros(1, CACHE)
        parts = (self.k, self.k_scales, self.v, self.v_scales, self.offset)
        self.record[0] = (KV_KINDS[kind], heads, kv_heads, head_dim, self.capacity, *(p.ctypes.data for p in parts))
        scratch, copy = aligned(64, 0), keys.copy()
        other = values.copy()  # storing may overwrite its input
        _fill(self.record, self.positions, copy.ctypes.data, other.ctypes.data, scratch.ctypes.data)

    def attend(self, query: Any, position: int) -> Any:
        """Return attention from `query` (tokens, heads, head_dim) at `position` and following, in the same shape."""
        tokens, group = len(query), self.heads // self.kv_heads
        rows = tokens * group
        grouped = query.reshape(tokens, self.kv_heads, group, self.head_dim).swapaxes(0, 1)
        x = np.zeros((self.kv_heads, rows + ATTENTION_ROWS, self.head_dim), np.float32)
        x[:, :rows] = grouped.reshape(self.kv_heads, rows, self.head_dim)
        blocks = x.size // 32
        x8, scales, corrections = np.zeros(x.size, np.int8), np.zeros(blocks, np.float32), np.zeros(blocks, np.int32)
        record = np.zeros(1, QUERIES)
        record[0] = (rows + ATTENTION_ROWS, *(part.ctypes.data for part in (x, x8, scales, corrections)))
        _store_queries(record, KV_KINDS[self.kind], self.kv_heads, rows, self.head_dim)
        stride = PARTIAL_HEADER_BYTES + self.head_dim * 4
        scratch, totals, partial = (
            aligned(size, 0) for size in (ATTENTION_SCRATCH_BYTES, ATTENTION_ROWS * stride, ATTENTION_ROWS * stride)
        )
        out = np.zeros((self.kv_heads, rows, self.head_dim), np.float32)
        addresses = (part.ctypes.data for part in (scratch, totals, partial, out))
        _attend(self.record, record, rows, position, position + tokens, *addresses)
        return out.reshape(self.kv_heads, tokens, group, self.head_dim).swapaxes(0, 1).reshape(query.shape)


def random_cache(kind: str, shape: tuple[int, int, int], positions: int) -> tuple[Cache, Any, Any]:
    """Return a cache of random keys and values, and these (positions, kv_heads, head_dim)."""
    rng = np.random.default_rng(positions)
    keys, values = rng.standard_normal((2, positions, *shape[1:])).astype(np.float32)
    return Cache(kind, *shape, keys, values), keys, values


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [1, 15, 16, 17, 512, 513, 1300])
def test_attention(kind: str, shape: tuple[int, int, int], limit: int) -> None:
    cache, keys, values = random_cache(kind, shape, 1300)
    rng = np.random.default_rng(limit)
    query = (rng.standard_normal((1, shape[0], shape[2])) * 3 / math.sqrt(shape[2])).astype(np.float32)
    out = cache.attend(query, limit - 1)[0]
    keys, values = keys[:limit], values[:limit]
    if kind == "f32":
        expected, tolerance = reference.attention(query[0], keys, values), 2e-6
    else:
        # A weight on the border between two 16-bit codes may be rounded either way.
        keys = keys - cache.offset.reshape(shape[1:])
        expected, tolerance = reference.attention_q8(query[0], keys, values, SPLIT_POSITIONS), 2e-5
    assert np.abs(out - expected).max() < tolerance * max(1, np.abs(expected).max())
    exact = reference.attention(query[0], keys, values)
    assert np.abs(out - exact).max() < 0.05 * max(1, np.abs(exact).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [0, 500, 1025])
def test_rows_do_not_depend_on_their_neighbours(kind: str, position: int) -> None:
    shape, tokens = (14, 2, 64), 21
    cache, _, _ = random_cache(kind, shape, position + tokens)
    query = np.random.default_rng(position).standard_normal((tokens, 14, 64)).astype(np.float32)
    together = cache.attend(query, position)
    for token in range(tokens):
        assert np.array_equal(cache.attend(query[token : token + 1], position + token)[0], together[token])


@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_codes_of_the_cache(head_dim: int) -> None:
    cache, keys, values = random_cache("q8", (2, 2, head_dim), 530)
    keys = keys - cache.offset.reshape(2, head_dim)
    codes = cache.k[: cache.capacity * 2 * head_dim].reshape(2, -1, head_dim // 4, 16, 4).swapaxes(2, 3)
    codes = codes.reshape(2, cache.capacity, head_dim)[:, :530].swapaxes(0, 1)
    expected, scales = reference.quantise_kv(reference.hadamard(keys))
    assert np.array_equal((codes ^ 0x80).view(np.int8), expected)
    stored = cache.k_scales.view(np.float16)[: cache.capacity * 2 * head_dim // 32]
    stored = stored.reshape(2, -1, head_dim // 32, 16).swapaxes(2, 3).reshape(2, cache.capacity, -1)
    assert np.array_equal(stored[:, :530].swapaxes(0, 1), scales)
    codes = cache.v[: cache.capacity * 2 * head_dim].reshape(2, head_dim // 16, -1, 16, 4)[..., [0, 2, 1, 3]]
    codes = codes.transpose(2, 4, 0, 1, 3).reshape(cache.capacity, 2, head_dim)[:530]
    expected, scales = reference.quantise_kv(reference.hadamard(values))
    assert np.array_equal(codes.view(np.int8), expected)
    stored = cache.v_scales.view(np.float16)[: cache.capacity * 2 * head_dim // 32].reshape(2, head_dim // 32, -1)
    assert np.array_equal(stored.transpose(2, 0, 1)[:530], scales)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_tail_does_not_vanish_beside_a_peak(kind: str) -> None:
    """Check one position of weight 1 and 511 positions that share as much.

    With 8 bits for the weights, the 511 would be rounded to nothing.
    """
    keys = np.zeros((512, 1, 32), np.float32)
    keys[0, 0, 0] = math.log(511)
    values = np.zeros((512, 1, 32), np.float32)
    values[0], values[1:] = -1, 1
    cache = Cache(kind, 1, 1, 32, keys, values)
    query = np.zeros((1, 1, 32), np.float32)
    query[0, 0, 0] = 1
    assert np.abs(cache.attend(query, 511)).max() < 2e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["key", "value", "query"])
def test_a_value_that_is_not_finite_reaches_the_result(kind: str, place: str) -> None:
    rng = np.random.default_rng(3)
    keys, values = rng.standard_normal((2, 40, 1, 64)).astype(np.float32)
    query = rng.standard_normal((1, 1, 64)).astype(np.float32)
    {"key": keys, "value": values, "query": query}[place][0, 0, 5] = np.nan
    assert np.isnan(Cache(kind, 1, 1, 64, keys, values).attend(query, 39)).any()
