"""Row-wise kernels against their NumPy twins."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quant.formats import dequantise
from qwchat.kernels import attention, elementwise, reference, simd
from qwchat.kernels.jit import kernel
from qwchat.kernels.records import CACHE, PARTIAL_HEADER, SLOTS, SPLIT
from qwchat.model.weights import Weights
from tests.kernels.packed import KINDS, Folder, random_packed


@kernel
def _exponential(x, out, count):  # type: ignore[no-untyped-def]
    for offset in range(0, count * 4, 64):
        simd.store_f32(out + offset, elementwise.exponential(simd.load_f32(x + offset)))


def exponential(values: np.ndarray) -> np.ndarray:
    x = np.ascontiguousarray(values, np.float32)
    out = np.empty_like(x)
    _exponential(x.ctypes.data, out.ctypes.data, len(x))
    return out


def test_exponential() -> None:
    x = np.linspace(-87, 88, 160_000, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(exponential(x) / exact - 1).max() < 3e-7
    assert exponential(np.zeros(16))[0] == 1
    assert not exponential(np.full(16, -np.inf)).any()
    assert not exponential(np.full(16, -90.0)).any()
    assert np.isnan(exponential(np.full(16, np.nan))).all()


@pytest.mark.parametrize("columns", [32, 896, 4864])
def test_quantise(columns: int) -> None:
    rng = np.random.default_rng(columns)
    x = rng.standard_normal((6, columns)).astype(np.float32)
    x[0, :32] = 0
    x[5, 5] = 1e30
    expected = reference.packed_activations(x)
    packed = np.zeros_like(expected)
    for row in range(6):
        elementwise.quantise(x[row].ctypes.data, packed[row // SLOTS].ctypes.data, row, columns)
    assert np.array_equal(packed, expected)


@pytest.mark.parametrize("columns", [32, 256, 3584])
def test_rms_norm(columns: int) -> None:
    rng = np.random.default_rng(columns)
    x, weight = rng.standard_normal((2, columns)).astype(np.float32)
    out = np.empty_like(x)
    elementwise.rms_norm(x.ctypes.data, weight.ctypes.data, out.ctypes.data, columns, 1e-6)
    assert np.allclose(out, reference.rms_norm(x[None], weight, 1e-6)[0], rtol=1e-6, atol=0)


def test_silu_multiply() -> None:
    gate = np.concatenate([np.linspace(-200, 200, 512), [0.0] * 32]).astype(np.float32)
    up = np.random.default_rng(0).standard_normal(len(gate)).astype(np.float32)
    out = np.empty_like(gate)
    elementwise.silu_multiply(gate.ctypes.data, up.ctypes.data, out.ctypes.data, len(gate))
    assert np.allclose(out, reference.silu_multiply(gate, up), rtol=1e-6, atol=1e-35)


@kernel
def _embed(matrices, token, out):  # type: ignore[no-untyped-def]
    elementwise.embed(matrices[0], token, out)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_embed(kind: tuple[str, int, bool]) -> None:
    packed = random_packed(kind, 40, 256, np.random.default_rng(1))
    expected = dequantise(packed)
    weights = Weights(Folder(w=packed))
    matrix = weights.matrix("w").reshape(1)
    out = np.empty(256, np.float32)
    for token in (0, 15, 16, 39):
        _embed(matrix, token, out.ctypes.data)
        assert np.allclose(out, expected[token], rtol=1e-6)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_rotate(head_dim: int) -> None:
    rng = np.random.default_rng(head_dim)
    x = rng.standard_normal(head_dim).astype(np.float32)
    angle = rng.uniform(0, 6, head_dim // 2)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    expected = reference.rotate(x, cos, sin) * np.float32(0.5)
    attention.rotate(x.ctypes.data, cos.ctypes.data, sin.ctypes.data, head_dim, np.float32(0.5))
    assert np.allclose(x, expected, rtol=1e-6, atol=1e-6)


class Cache:
    """A one-layer cache filled through the kernels' own store functions."""

    def __init__(self, heads: int, kv_heads: int, head_dim: int, positions: int, rng: np.random.Generator) -> None:
        capacity = -(-positions // SPLIT) * SPLIT
        # Lanes that were never written must not matter, whatever they hold.
        self.memory = np.full((2, kv_heads * capacity * head_dim), 1e30, np.float32)
        self.keys = rng.standard_normal((positions, kv_heads, head_dim)).astype(np.float32)
        self.values = rng.standard_normal((positions, kv_heads, head_dim)).astype(np.float32)
        self.record = np.zeros(1, CACHE)
        geometry = (heads, kv_heads, head_dim, capacity, *(half.ctypes.data for half in self.memory))
        self.record[0] = geometry
        _fill(self.record, positions, self.keys.ctypes.data, self.values.ctypes.data)


@kernel
def _fill(caches, positions, keys, values):  # type: ignore[no-untyped-def]
    cache = caches[0]
    for position in range(positions):
        for head in range(cache.num_kv_heads):
            offset = (position * cache.num_kv_heads + head) * cache.head_dim * 4
            attention.store_key(cache, head, position, keys + offset)
            attention.store_value(cache, head, position, values + offset)


@kernel
def _attend(caches, query, limit, scores, total, partial, out):  # type: ignore[no-untyped-def]
    cache = caches[0]
    group = cache.num_heads // cache.num_kv_heads
    stride = attention.partial_stride(cache)
    for kv_head in range(cache.num_kv_heads):
        x = query + kv_head * group * cache.head_dim * 4
        for start in range(0, limit, SPLIT):
            target = total if start == 0 else partial
            attention.attend_split(cache, x, kv_head, start, min(limit, start + SPLIT), scores, target)
            if start > 0:
                for head in range(group):
                    attention.merge(total + head * stride, partial + head * stride, cache.head_dim)
        for head in range(group):
            target = out + (kv_head * group + head) * cache.head_dim * 4
            attention.normalise(total + head * stride, target, cache.head_dim)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(4, 2, 64), (7, 1, 64), (6, 6, 32), (8, 1, 128), (14, 2, 64)]
)
@pytest.mark.parametrize("limit", [1, 15, 16, 17, 512, 513, 1300])
def test_attention(heads: int, kv_heads: int, head_dim: int, limit: int) -> None:
    rng = np.random.default_rng(limit)
    cache = Cache(heads, kv_heads, head_dim, 1300, rng)
    query = (rng.standard_normal((heads, head_dim)) * 3 / math.sqrt(head_dim)).astype(np.float32)
    out = np.empty_like(query)
    stride = PARTIAL_HEADER + head_dim * 4
    scores, total, partial = (np.zeros(size, np.uint8) for size in (8 * SPLIT * 4, 8 * stride, 8 * stride))
    addresses = (array.ctypes.data for array in (scores, total, partial, out))
    _attend(cache.record, query.ctypes.data, limit, *addresses)
    expected = reference.attention(query, cache.keys[:limit], cache.values[:limit])
    assert np.abs(out - expected).max() < 2e-6 * max(1, np.abs(expected).max())
