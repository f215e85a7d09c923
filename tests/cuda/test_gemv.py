"""The integer matrix-vector kernels, interpreted, against their twins: equal to the bit.

The twin computes each token alone, whatever the number of tokens; so equality with it for 1, 2, and 3 to 8 tokens also
shows that a token gets the same bits in each of the three variants.
"""

from __future__ import annotations

import numpy as np
import pytest

from qwchat.cuda.gemv_shapes import split, units
from qwchat.cuda.kernels import reference_gemv as twin
from qwchat.cuda.manifest import TARGETS
from tests.cuda import gemv_cases as cases
from tests.tiers import some

SHAPES = [  # format, rows of the matrix, columns, group, zero points
    ("q4", 40, 96, 32, False),
    ("q8", 40, 96, 32, False),
    ("lin4", 16, 128, 64, True),
    ("lin8", 48, 256, 128, False),
    ("lin4", 24, 96, 32, False),
    ("lin8", 16, 96, 32, True),
    ("q4", 16, 32, 32, False),
    ("q4", 33, 896, 32, False),
    ("q8", 33, 896, 32, False),
    ("lin4", 80, 640, 128, True),
    ("lin8", 80, 640, 64, True),
    ("q4", 176, 2080, 32, False),
]
LAUNCHES = [(3, 2), (0, 1), (1, 3), (2, 16)]  # split, blocks


def _cases() -> list[tuple[int, int, int, int]]:
    """Return (shape, tokens, launch, target), each shape with all numbers of tokens, in a varied order."""
    return [
        (shape, tokens, (shape + tokens) % len(LAUNCHES), TARGETS[(shape + 2 * tokens) % len(TARGETS)])
        for tokens in (1, 2, 8, 3, 5, 4, 6, 7)
        for shape in range(len(SHAPES))
    ]


@pytest.mark.parametrize(("shape", "tokens", "launch", "target"), some(_cases(), 5))
def test_a_product_equals_the_twin(shape: int, tokens: int, launch: int, target: int) -> None:
    name, rows, columns, group, zeros = SHAPES[shape]
    packed = cases.integer_matrix(name, rows, columns, group=group, zeros=zeros, seed=shape)
    x = cases.activations(tokens, columns, seed=tokens)
    bias = np.random.default_rng(2).standard_normal(16 * packed.num_tiles).astype(np.float32)
    warps, blocks = LAUNCHES[launch]
    got = cases.product(packed, x, target=target, split=warps, blocks=blocks, bias=bias, seed=tokens)
    codes, scales, _ = twin.quantise(x)
    np.testing.assert_array_equal(got[:, :-4], twin.multiply(packed, codes, scales, warps, bias))
    assert np.isnan(got[:, -4:]).all()


@pytest.mark.slow
@pytest.mark.parametrize("columns", [18944, 29568])
@pytest.mark.parametrize("name", cases.INTEGERS)
def test_long_rows_equal_the_twin(name: str, columns: int) -> None:
    packed = cases.integer_matrix(name, 20, columns, zeros=name == "lin8")
    for tokens in (1, 2, 8):
        x = cases.activations(tokens, columns)
        codes, scales, _ = twin.quantise(x)
        np.testing.assert_array_equal(cases.product(packed, x)[:, :-4], twin.multiply(packed, codes, scales, 3))


@pytest.mark.parametrize("tokens", [1, 2, 6])
def test_sums_are_added_to_what_is_there(tokens: int) -> None:
    packed, x = cases.integer_matrix("q4", 32, 96), cases.activations(tokens, 96)
    out = np.random.default_rng(3).standard_normal((tokens, 36)).astype(np.float32)
    codes, scales, _ = twin.quantise(x)
    wanted = out.copy()
    wanted[:, :32] += twin.multiply(packed, codes, scales, 3)
    np.testing.assert_array_equal(cases.product(packed, x, out=out), wanted)


@pytest.mark.parametrize(("shape", "tokens", "launch", "target"), some(_cases(), 9))
def test_a_product_after_a_norm_equals_the_twin(shape: int, tokens: int, launch: int, target: int) -> None:
    name, rows, columns, group, zeros = SHAPES[shape]
    packed = cases.integer_matrix(name, rows, columns, group=group, zeros=zeros, seed=shape)
    residual = cases.activations(tokens + 3, columns, seed=tokens)
    norm = np.random.default_rng(4).uniform(0.5, 1.5, columns).astype(np.float32)
    warps, blocks = LAUNCHES[launch]
    got = cases.normed_product(packed, residual, norm, first=2, rows=tokens, target=target, split=warps, blocks=blocks)
    codes, scales, _ = twin.quantise(twin.normalise(residual[2 : 2 + tokens], norm, 1e-6))
    np.testing.assert_array_equal(got, twin.multiply(packed, codes, scales, warps))


@pytest.mark.parametrize(("shape", "tokens", "launch", "target"), some(_cases(), 9))
def test_gate_and_up_equal_the_twin(shape: int, tokens: int, launch: int, target: int) -> None:
    name, rows, columns, group, zeros = SHAPES[shape]
    intermediate = -(-rows // 32) * 32
    packed = cases.integer_matrix(name, 2 * intermediate, columns, group=group, zeros=zeros, seed=shape)
    residual = np.random.default_rng(tokens).standard_normal((tokens, columns)).astype(np.float32)
    norm = np.full(columns, 0.01, np.float32)
    warps = launch % 2
    floats, codes, records = cases.gate_up(packed, residual, norm, target=target, split=warps, blocks=2)
    x_codes, x_scales, _ = twin.quantise(twin.normalise(residual, norm, 1e-6))
    both = twin.multiply(packed, x_codes, x_scales, warps)
    wanted = twin.silu_product(both[:, :intermediate], both[:, intermediate:])
    np.testing.assert_array_equal(floats, wanted)
    wanted_codes, wanted_scales, wanted_sums = twin.quantise(wanted)
    np.testing.assert_array_equal(codes, wanted_codes)
    np.testing.assert_array_equal(records, cases.records(wanted_scales, wanted_sums))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_what_is_not_finite_reaches_every_output(value: float, tokens: int) -> None:
    packed, x = cases.integer_matrix("q4", 16, 96), np.ones((tokens, 96), np.float32)
    x[-1, 40] = value
    got = cases.product(packed, x)[:, :16]
    assert np.isnan(got[-1]).all()
    assert np.isfinite(got[:-1]).all()
    norm = np.ones(96, np.float32)
    got = cases.normed_product(packed, x, norm, first=0, rows=tokens, target=80, split=3, blocks=1)
    assert np.isnan(got[-1]).all()
    assert np.isfinite(got[:-1]).all()


def test_a_sum_of_squares_that_overflows_is_reported_as_nan() -> None:
    packed, x = cases.integer_matrix("q8", 16, 64), np.full((1, 64), 1e30, np.float32)
    norm = np.ones(64, np.float32)
    assert np.isnan(cases.normed_product(packed, x, norm, first=0, rows=1, target=80, split=3, blocks=1)).all()


def test_warps_per_tile_follow_the_matrix() -> None:
    assert [split(tiles) for tiles in (9504, 1200, 600, 224)] == [0, 1, 2, 3]
    assert [split(tiles, gate_up=True) for tiles in (2368, 608)] == [0, 1]
    assert [units(224, 3, rows) for rows in (1, 2, 3)] == [224, 224, 112]
    assert units(2368, 0, 8, dense=True) == 296
