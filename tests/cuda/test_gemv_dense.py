"""The bf16 and f32 matrix-vector kernels, interpreted: equal to their twin to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from quant.formats import dequantise
from qwchat.cuda.kernels import reference_gemv as twin
from qwchat.cuda.manifest import TARGETS
from tests.cuda import gemv_cases as cases
from tests.tiers import some

CASES = [
    (name, rows, columns, tokens, split, TARGETS[(index + tokens) % len(TARGETS)])
    for name in cases.DENSE
    for index, (rows, columns, split) in enumerate([(40, 96, 3), (16, 32, 0), (50, 352, 1), (16, 896, 2)])
    for tokens in (1, 2, 5, 8)
]


@pytest.mark.parametrize(("name", "rows", "columns", "tokens", "split", "target"), some(CASES, 5))
def test_a_product_equals_the_twin(name: str, rows: int, columns: int, tokens: int, split: int, target: int) -> None:
    packed, x = cases.dense_matrix(name, rows, columns), cases.activations(tokens, columns)
    bias = np.random.default_rng(2).standard_normal(16 * packed.num_tiles).astype(np.float32)
    got = cases.product(packed, x, target=target, split=split, bias=bias)[:, :-4]
    np.testing.assert_array_equal(got, twin.multiply_floats(packed, x, split, bias))
    plain = x.astype(np.float64) @ dequantise(packed).astype(np.float64).T + bias[:rows]
    np.testing.assert_allclose(got[:, :rows], plain, rtol=1e-5, atol=1e-6 * np.abs(plain).max())


@pytest.mark.parametrize(("name", "rows", "columns", "tokens", "split", "target"), some(CASES, 7))
def test_norm_and_gate_equal_the_twin(name: str, rows: int, columns: int, tokens: int, split: int, target: int) -> None:
    packed, residual = cases.dense_matrix(name, 64, columns), cases.activations(tokens + 1, columns)
    norm = np.random.default_rng(4).uniform(0.5, 1.5, columns).astype(np.float32)
    got = cases.normed_product(packed, residual, norm, first=1, rows=tokens, target=target, split=split, blocks=2)
    x = twin.normalise(residual[1:], norm, 1e-6)
    np.testing.assert_array_equal(got, twin.multiply_floats(packed, x, split))
    floats, codes, records = cases.gate_up(packed, residual[1:], norm, target=target, split=split % 2, blocks=1)
    both = twin.multiply_floats(packed, x, split % 2)
    wanted = twin.silu_product(both[:, :32], both[:, 32:])
    np.testing.assert_array_equal(floats, wanted)
    wanted_codes, scales, sums = twin.quantise(wanted)
    np.testing.assert_array_equal(codes, wanted_codes)
    np.testing.assert_array_equal(records, cases.records(scales, sums))
