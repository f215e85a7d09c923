"""Row kernels, compared with their NumPy twins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quant.formats import PackedTensor, dequantise
from qwchat.cpu.kernels import reference, row_kernels, simd
from qwchat.cpu.kernels.embedding_rows import embed
from qwchat.cpu.kernels.records import BLOCK, PACKED_BLOCK_BYTES, PANEL_BLOCK_BYTES, PANEL_BLOCKS, TOKEN_LANES
from qwchat.cpu.weights import Weights
from tests.cpu.kernels.numba_cached import kernel
from tests.cpu.kernels.random_tensors import KINDS, Folder, aligned, random_packed


@kernel
def _exponential(x, out, count):  # type: ignore[no-untyped-def]
    for offset in range(0, count * 4, 64):
        simd.store_f32(out + offset, row_kernels.exponential(simd.load_f32(x + offset)))


def exponential(values: np.ndarray) -> np.ndarray:
    x = np.ascontiguousarray(values, np.float32)
    out = np.empty_like(x)
    _exponential(x.ctypes.data, out.ctypes.data, len(x))
    return out


@kernel
def _exponential_below_zero(x, out, count):  # type: ignore[no-untyped-def]
    for offset in range(0, count * 4, 64):
        simd.store_f32(out + offset, row_kernels.exponential_below_zero(simd.load_f32(x + offset)))


def test_exponential_below_zero() -> None:
    x = np.linspace(-87.3, 0, 160_000, dtype=np.float32)
    x = np.concatenate([x, np.float32([0.0] * 16 + [-1e4, -np.inf] * 8 + [np.nan] * 16)])
    out = np.empty_like(x)
    _exponential_below_zero(x.ctypes.data, out.ctypes.data, len(x))
    assert np.abs(out[:160_000] / np.exp(x[:160_000].astype(np.float64)) - 1).max() < 3e-7
    assert np.array_equal(out[160_000:160_016], np.ones(16, np.float32))
    assert (out[160_016:160_032] < 2e-38).all()
    assert np.isnan(out[160_032:]).all()


def test_exponential() -> None:
    x = np.linspace(-87, 88, 160_000, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(exponential(x) / exact - 1).max() < 3e-7
    assert exponential(np.zeros(16))[0] == 1
    assert not exponential(np.full(16, -np.inf)).any()
    assert not exponential(np.full(16, -90.0)).any()
    assert np.isnan(exponential(np.full(16, np.nan))).all()


def quantised(x: np.ndarray, terms: int) -> np.ndarray:
    """Return `x` (tokens, columns) f32 in the layout of `records.ACTIVATIONS`, by the kernel."""
    tokens, columns = x.shape
    packed = np.zeros((-(-tokens * terms // TOKEN_LANES), columns // BLOCK, PACKED_BLOCK_BYTES), np.uint8)
    for token in range(tokens):
        group = packed[token * terms // TOKEN_LANES]
        row_kernels.quantise(x[token].ctypes.data, group.ctypes.data, token, columns, terms)
    return packed


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("columns", [32, 896, 4864])
def test_quantise(columns: int, terms: int) -> None:
    rng = np.random.default_rng(columns)
    x = rng.standard_normal((6, columns)).astype(np.float32)
    x[0, :32] = 0
    x[5, 5] = 1e30
    x[5, 6] = 1e-37
    x[3] *= np.float32(1e-36)
    assert np.array_equal(quantised(x, terms), reference.packed_activations(x, terms))


def test_two_terms_have_sixteen_bits() -> None:
    rng = np.random.default_rng(4)
    sizes = 10.0 ** rng.uniform(-20, 20, (64, 1))
    x = (rng.standard_normal((64, 32)) * sizes).astype(np.float32)
    x[0], x[1, 1:], x[2] = 0, 0, 1
    x[3] = 63.5 - np.arange(32)  # with the largest value below, each code lies halfway between two integers
    x[3, 0] = 127
    largest = np.abs(x).max(-1, keepdims=True).astype(np.float64)
    one, two = (np.abs(reference.dequantised_activations(x, terms) - x) for terms in (1, 2))
    assert (one <= largest / (2 * 127) * (1 + 1e-6)).all()
    assert (two <= largest / (2 * 127) ** 2 * (1 + 1e-3)).all()


@pytest.mark.parametrize("columns", [32, 256, 3584])
def test_rms_norm(columns: int) -> None:
    rng = np.random.default_rng(columns)
    x, weight = rng.standard_normal((2, columns)).astype(np.float32)
    out = np.empty_like(x)
    row_kernels.rms_norm(x.ctypes.data, weight.ctypes.data, out.ctypes.data, columns, 1e-6)
    assert np.allclose(out, reference.rms_norm(x[None], weight, 1e-6)[0], rtol=1e-6, atol=0)


def test_silu_multiply() -> None:
    gate = np.concatenate([np.linspace(-200, 200, 512), [0.0] * 32]).astype(np.float32)
    up = np.random.default_rng(0).standard_normal(len(gate)).astype(np.float32)
    out = np.empty_like(gate)
    row_kernels.silu_multiply(gate.ctypes.data, up.ctypes.data, out.ctypes.data, len(gate))
    assert np.allclose(out, reference.silu_multiply(gate, up), rtol=1e-6, atol=1e-35)


@kernel
def _embed(matrices, token, out, scratch):  # type: ignore[no-untyped-def]
    embed(matrices[0], token, out, scratch)


def _rows_scaled_last(packed: PackedTensor) -> np.ndarray:
    """Return the values of a matrix as row scale * (scale * level), rounded in this order."""
    row_scales = packed.parts.get("row_scales")
    if row_scales is None:
        return dequantise(packed)
    plain = replace(packed, parts={**packed.parts, "row_scales": np.ones_like(row_scales)})
    return dequantise(plain) * row_scales.reshape(-1)[: packed.shape[0], None]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_embed(kind: tuple[str, int, bool]) -> None:
    packed = random_packed(kind, 40, 256, np.random.default_rng(1))
    expected = _rows_scaled_last(packed)
    weights = Weights(Folder(w=packed))
    matrix = weights.matrix("w").reshape(1)
    out, scratch = np.empty(256, np.float32), aligned(PANEL_BLOCKS * PANEL_BLOCK_BYTES, 255)
    for token in (0, 15, 16, 39):
        _embed(matrix, token, out.ctypes.data, scratch.ctypes.data)
        assert np.array_equal(out, expected[token])
