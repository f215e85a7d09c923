"""The matrix kernels, compared with their NumPy twin for every format, number of vectors and awkward shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quant.formats import GroupedFormat, PackedTensor, dequantise, find_format
from qwchat.cpu.kernels import reference, row_kernels
from qwchat.cpu.kernels.format_kinds import IDS
from qwchat.cpu.kernels.matmul import activate_pairs, multiply_pairs, pair_count
from qwchat.cpu.kernels.records import ACTIVATIONS, BLOCK, PACKED_BLOCK_BYTES, TOKEN_LANES, matmul_scratch_bytes
from qwchat.cpu.weights import Weights
from tests.cpu.kernels.numba_cached import kernel
from tests.cpu.kernels.random_tensors import KINDS, Folder, random_packed, vector


def test_every_format_with_a_kernel_is_tested() -> None:
    assert {name for name, _, _ in KINDS} == set(IDS)


@kernel
def _run(matrices, sources, tokens, out, accumulate, scratch):  # type: ignore[no-untyped-def]
    matrix, source = matrices[0], sources[0]
    end, stride = pair_count(matrix), matrix.tiles * 64
    multiply_pairs(matrix, source.x, source.packed, tokens, source.terms, 0, end, out, stride, accumulate, scratch)


def activations(x: NDArray[np.float32], terms: int = 1) -> tuple[NDArray[Any], tuple[NDArray[Any], ...]]:
    """Return the ACTIVATIONS record of `x`, and the arrays that it points to."""
    packed = reference.packed_activations(x, terms)
    record = np.zeros(1, ACTIVATIONS)
    record["x"], record["packed"], record["columns"] = x.ctypes.data, packed.ctypes.data, x.shape[1]
    record["terms"] = terms
    return record, (x, packed)


def scratch_for(tokens: int) -> tuple[int, NDArray[np.uint8]]:
    """Return the address of a kernel's scratch, on a cache line, and the array that keeps it alive."""
    memory = np.full(matmul_scratch_bytes(tokens) + 64, 255, np.uint8)
    return memory.ctypes.data + -memory.ctypes.data % 64, memory


def multiply(
    packed: PackedTensor,
    x: NDArray[np.float32],
    bias: NDArray[np.float32] | None = None,
    residual: bool = False,
    terms: int = 1,
) -> NDArray[np.float32]:
    tensors = {"w": packed} | ({"b": vector(bias)} if bias is not None else {})
    weights = Weights(Folder(**tensors))
    matrix = weights.matrix("w", "b" if bias is not None else None).reshape(1)
    sources, alive = activations(x, terms)
    width = -(-packed.shape[0] // 16) * 16
    out = np.full((len(x), width), 3 if residual else np.nan, np.float32)
    scratch, memory = scratch_for(len(x) * terms)
    _run(matrix, sources, len(x), out.ctypes.data, residual, scratch)
    assert alive
    assert len(memory)
    return out[:, : packed.shape[0]]


def magnitudes(packed: PackedTensor) -> NDArray[np.float64]:
    """Return the size of each weight, and of its two terms if it is the difference of a product and a minimum."""
    fmt = find_format(packed.format)
    if not isinstance(fmt, GroupedFormat) or not fmt.minimum_sign:
        return np.abs(dequantise(packed)).astype(np.float64)
    product = dequantise(replace_parts(packed, minimums=np.zeros_like(packed.parts["minimums"])))
    return np.abs(product.astype(np.float64)) + np.abs(dequantise(packed) - product.astype(np.float64))


def replace_parts(packed: PackedTensor, **parts: NDArray[Any]) -> PackedTensor:
    return PackedTensor(packed.format, packed.shape, packed.group_size, packed.parts | parts)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    ("rows", "columns", "tokens", "terms"),
    [(1, 256, 1, 1), (16, 256, 2, 1), (33, 512, 7, 1), (48, 768, 15, 1), (33, 256, 1, 2), (16, 768, 11, 2)],
)
def test_equals_the_numpy_twin(kind: tuple[str, int, bool], rows: int, columns: int, tokens: int, terms: int) -> None:
    rng = np.random.default_rng(rows)
    packed = random_packed(kind, rows, columns, rng)
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    bias = rng.standard_normal(rows).astype(np.float32)
    expected = reference.multiply(packed, x, bias, terms)
    scale = magnitudes(packed) @ np.abs(x).T.astype(np.float64)
    found = multiply(packed, x, bias, terms=terms)
    error = np.abs(found - expected) / (scale.T + np.abs(bias))
    assert error.max() < 1e-6
    assert np.allclose(multiply(packed, x, bias, residual=True, terms=terms), found + np.float32(3), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("terms", [1, 2])
def test_a_token_does_not_depend_on_its_neighbours(kind: tuple[str, int, bool], terms: int) -> None:
    rng = np.random.default_rng(5)
    packed = random_packed(kind, 80, 768, rng)
    x = rng.standard_normal((23, 768)).astype(np.float32)
    together = multiply(packed, x, terms=terms)
    for tokens in range(1, 10):
        starts = range(0, len(x), tokens)
        parts = [multiply(packed, np.ascontiguousarray(x[at : at + tokens]), terms=terms) for at in starts]
        apart = np.concatenate(parts)
        assert np.array_equal(together, apart)


@kernel
def _activate(gates, ups, sources, tokens, targets, keep, scratch):  # type: ignore[no-untyped-def]
    source, end = sources[0], pair_count(gates[0])
    activate_pairs(gates[0], ups[0], source.x, source.packed, tokens, 0, end, targets[0], keep, scratch)


@pytest.mark.parametrize("kinds", [("q4", "q8"), ("bf16", "lin4"), ("k4", "min4")], ids=str)
@pytest.mark.parametrize(("tokens", "terms"), [(1, 1), (7, 1), (13, 1), (3, 2), (7, 2)])
def test_gate_and_up_are_activated_and_quantised(kinds: tuple[str, str], tokens: int, terms: int) -> None:
    rng = np.random.default_rng(9)
    gate, up = (random_packed(next(kind for kind in KINDS if kind[0] == name), 96, 256, rng) for name in kinds)
    x = rng.standard_normal((tokens, 256)).astype(np.float32)
    expected = np.empty((tokens, 96), np.float32)
    products = (multiply(matrix, x, terms=terms) for matrix in (gate, up))
    for row, left, right in zip(expected, *products, strict=True):
        left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
        row_kernels.silu_multiply(left.ctypes.data, right.ctypes.data, row.ctypes.data, 96)
    target, (out, packed) = activations(np.zeros_like(expected), terms)
    sources, alive = activations(x, terms)
    weights = Weights(Folder(gate=gate, up=up))
    scratch, memory = scratch_for(tokens * terms)
    matrices = weights.matrix("gate").reshape(1), weights.matrix("up").reshape(1)
    for keep in (False, True):
        packed[:] = 0
        _activate(*matrices, sources, tokens, target, keep, scratch)
        assert np.array_equal(out, expected if keep else np.zeros_like(expected))
        assert np.array_equal(packed, reference.packed_activations(expected, terms))
    assert alive
    assert len(memory)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[1]], ids=str)
def test_extreme_scales_and_zero_blocks(kind: tuple[str, int, bool]) -> None:
    rng = np.random.default_rng(6)
    packed = random_packed(kind, 32, 256, rng, extreme=True)
    for part in {"scales", "minimums"} & packed.parts.keys():
        packed.parts[part][:, 1] = 0
    x = (rng.standard_normal((3, 256)) * 10.0 ** rng.uniform(-15, 5, (3, 256))).astype(np.float32)
    x[0, 32:96] = 0
    x[1] = 0
    result, expected = multiply(packed, x), reference.multiply(packed, x)
    scale = magnitudes(packed) @ np.abs(x).T.astype(np.float64)
    assert np.all(np.abs(result - expected) <= 1e-6 * scale.T + 1e-30)
    assert not result[1].any()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_activations_are_not_hidden(kind: tuple[str, int, bool], bad: float) -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((1, 256)).astype(np.float32)
    x[0, 77] = bad
    packed = random_packed(kind, 16, 256, rng)
    seen = np.zeros((8, PACKED_BLOCK_BYTES), np.uint8)
    row_kernels.quantise(x.ctypes.data, seen.ctypes.data, 0, 256, 2)
    scales = seen[:, TOKEN_LANES * BLOCK :].view(np.float32)[:, :2]
    assert np.isnan(scales[2]).all()
    assert np.isfinite(np.delete(scales, 2, axis=0)).all()
    for terms in (1, 2):
        with np.errstate(invalid="ignore"):
            result = multiply(packed, x, terms=terms)
        assert not np.isfinite(result).any()


def test_the_real_vocabulary() -> None:
    rng = np.random.default_rng(8)
    packed = random_packed(("q8", 32, False), 151_936, 64, rng)
    x = rng.standard_normal((1, 64)).astype(np.float32)
    expected = reference.multiply(packed, x)
    assert np.abs(multiply(packed, x) - expected).max() <= 1e-5 * np.abs(expected).max()
