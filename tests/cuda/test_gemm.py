"""Matrix products of prefill, interpreted, against their twin and against float64."""

from __future__ import annotations

import numpy as np
import pytest

from quant.formats import dequantise
from qwchat.cuda.kernels import reference_prefill
from qwchat.cuda.manifest import TARGETS
from tests.cuda.prefill_runs import assert_close, kernel_of, random_rows, random_weights, run_gemm
from tests.tiers import some

SUMS = 1e-6
"""Error of f32 sums in another order, as a share of the largest result of a row."""

KINDS = [
    ("q4", 32, False),
    ("q8", 32, False),
    ("lin4", 32, True),
    ("lin4", 64, False),
    ("lin4", 128, True),
    ("lin8", 64, True),
    ("lin8", 128, False),
    ("bf16", 0, False),
    ("f32", 0, False),
]
SHAPES = [(9, 1, 1), (17, 7, 2), (64, 8, 1), (65, 9, 3), (70, 17, 2)]
"""Tokens, tiles and groups of 128 columns."""


def check(target: int, kind: tuple[str, int, bool], tokens: int, rows: int, columns: int) -> None:
    name, group_size, zeros = kind
    packed = random_weights(name, rows, columns, group_size, zeros)
    xh, xf = reference_prefill.activation_rows(random_rows(tokens, columns))
    random = np.random.default_rng(tokens)
    bias = random.standard_normal(16 * packed.num_tiles).astype(np.float32)
    kernel = kernel_of(f"gemm_{name}", target)
    assert_close(run_gemm(kernel, packed, xh, xf), reference_prefill.gemm(packed, xh, xf), SUMS)
    old = random.standard_normal((tokens, 16 * packed.num_tiles)).astype(np.float32)
    wanted = reference_prefill.gemm(packed, xh, xf, bias) + old
    assert_close(run_gemm(kernel, packed, xh, xf, bias, old), wanted, SUMS)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", some(KINDS, 4), ids=str)
def test_products_are_those_of_the_twin(target: int, kind: tuple[str, int, bool]) -> None:
    check(target, kind, 11, 40, 128)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("tokens", "tiles", "groups"), SHAPES)
def test_awkward_shapes(target: int, kind: tuple[str, int, bool], tokens: int, tiles: int, groups: int) -> None:
    check(target, kind, tokens, 16 * tiles - 5, 128 * groups)


@pytest.mark.parametrize("columns", some([32, 96, 64, 160], 2))
def test_few_groups(columns: int) -> None:
    check(90, ("q4", 32, False), 9, 16, columns)
    check(75, ("q8", 32, False), 9, 16, columns)


@pytest.mark.parametrize(("name", "group_size", "zeros"), some(KINDS, 3))
def test_the_error_of_f16_is_small(name: str, group_size: int, zeros: bool) -> None:
    packed = random_weights(name, 16, 256, group_size, zeros)
    x = np.random.default_rng(3).standard_normal((9, 256)).astype(np.float32)
    wanted = x.astype(np.float64) @ dequantise(packed).astype(np.float64).T
    got = run_gemm(kernel_of(f"gemm_{name}", 90), packed, *reference_prefill.activation_rows(x))
    assert np.linalg.norm(got - wanted) < 5e-4 * np.linalg.norm(wanted)


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1e5, 1e30])
def test_rows_of_any_size_neither_overflow_nor_vanish(size: float) -> None:
    """Inputs of down_proj reach 1e5, beyond f16."""
    packed = random_weights("q4", 16, 64, 32)
    x = (np.random.default_rng(4).standard_normal((9, 64)) * size).astype(np.float32)
    wanted = x.astype(np.float64) @ dequantise(packed).astype(np.float64).T
    got = run_gemm(kernel_of("gemm_q4", 80), packed, *reference_prefill.activation_rows(x))
    if size > 1e-35:
        assert np.linalg.norm(got - wanted) < 5e-4 * np.linalg.norm(wanted)
    else:
        assert np.isfinite(got).all()


def test_zero_weights_and_zero_activations_give_zero() -> None:
    packed = random_weights("q4", 16, 64, 32)
    packed.parts["scales"][:] = 0
    xh, xf = reference_prefill.activation_rows(random_rows(9, 64))
    assert (run_gemm(kernel_of("gemm_q4", 90), packed, xh, xf) == 0).all()
    full = random_weights("q8", 16, 64, 32)
    xh, xf = reference_prefill.activation_rows(np.zeros((9, 64), np.float32))
    assert (run_gemm(kernel_of("gemm_q8", 90), full, xh, xf) == 0).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_token_that_is_not_finite_spoils_itself_alone(poison: float) -> None:
    packed = random_weights("q4", 16, 64, 32)
    x = random_rows(10, 64)
    x[4, 7] = poison
    xh, xf = reference_prefill.activation_rows(x)
    got = run_gemm(kernel_of("gemm_q4", 90), packed, xh, xf)
    finite = np.isfinite(got).all(1)
    assert not finite[4]
    assert finite[np.arange(10) != 4].all()


@pytest.mark.parametrize("target", TARGETS)
def test_a_token_does_not_depend_on_the_others(target: int) -> None:
    packed = random_weights("lin4", 48, 128, 64, True)
    xh, xf = reference_prefill.activation_rows(random_rows(19, 128))
    kernel = kernel_of("gemm_lin4", target)
    np.testing.assert_array_equal(
        run_gemm(kernel, packed, xh, xf)[5:14], run_gemm(kernel, packed, xh[5:14].copy(), xf[5:14].copy())
    )
