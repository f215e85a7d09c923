"""Error feedback: equal to its NumPy twin, never worse than the plain encoding, independent of chunks and threads."""

from __future__ import annotations

import numpy as np
import pytest

from quant import formats
from quant.errors import FormatError
from quant.quantisers import feedback, feedback_factor, feedback_reference, feedback_target, quantise
from quant.quantisers.feedback_factor import Factor
from tests.quant.feedback_inputs import F32, correlated_inputs, second_moments, weights
from tests.tiers import count

METHODS = [(fmt.name, size) for fmt in formats.FORMATS.values() if feedback.supports(fmt) for size in fmt.group_sizes]


@pytest.fixture(scope="module", name="factor")
def make_factor() -> Factor:
    """Return the factor of 384 inputs in blocks of 256 and 128."""
    inputs = correlated_inputs(900, 384)
    found = feedback_factor.factorise([second_moments(inputs[:, :256]), second_moments(inputs[:, 256:])])
    assert found is not None
    return found


def exact_moments(factor: Factor) -> np.ndarray:
    """Return the damped moments (K, K) f64 that a factor stands for."""
    columns = len(factor.weights)
    shares = np.eye(columns)
    offset = 0
    for block in factor.shares:
        place = slice(offset, offset + len(block))
        shares[place, place] += np.triu(block, 1)
        offset += len(block)
    return shares @ np.diag(factor.weights.astype(np.float64)) @ shares.T


def objectives(values: F32, packed: formats.PackedTensor, moments: np.ndarray) -> np.ndarray:
    """Return e H eᵀ of each row."""
    errors = values.astype(np.float64) - formats.dequantise(packed)
    return np.einsum("ij,jk,ik->i", errors, moments, errors)


def encodable(name: str, values: F32) -> F32:
    """Return the values without those that float16 scales cannot represent."""
    if name.startswith("lin"):
        values[2] = 1
    return values


@pytest.mark.parametrize("columns", [128, 224, 416])
def test_factor_equals_its_twin_and_restores_the_moments(columns: int) -> None:
    moments = second_moments(correlated_inputs(3 * columns, columns))
    factor = feedback_factor.factorise([moments], threads=3)
    assert factor is not None
    assert factor.damping == 0.01
    twin = feedback_reference.factorise([moments], 0.01)
    assert np.array_equal(factor.weights, twin.weights)
    assert np.array_equal(np.triu(factor.shares[0], 1), np.triu(twin.shares[0], 1))
    expected = moments / factor.typical + 0.01 * np.eye(columns)
    assert np.abs(exact_moments(factor) - expected).max() <= 1e-5 * expected.max()


@pytest.mark.parametrize(("name", "group_size"), METHODS)
def test_compiled_equals_reference(name: str, group_size: int, factor: Factor) -> None:
    if name == "q4":  # its twin tries the most candidates
        factor = Factor(factor.shares[:1], factor.weights[:256], factor.damping, factor.typical, factor.influence[:256])
    values = encodable(name, weights(21, len(factor.weights)))
    packed, errors = feedback.quantise(name, values, group_size, factor)
    twin = feedback_reference.quantise(name, values, group_size, factor)
    assert list(packed.parts) == list(twin.parts)
    for part, array in packed.parts.items():
        assert np.array_equal(array, twin.parts[part]), part
    real = ((values - formats.dequantise(packed)).astype(np.float64) ** 2).sum(axis=1)
    assert np.allclose(errors, real, rtol=1e-6, atol=0)
    formats.check_packed(packed)


@pytest.mark.parametrize(("name", "group_size"), METHODS)
def test_feedback_is_never_worse_and_mostly_much_better(name: str, group_size: int, factor: Factor) -> None:
    values = weights(count(256, 64), 384, seed=1)[9:]
    moments = exact_moments(factor)
    plain = objectives(values, quantise(name, values, group_size)[0], moments)
    better = objectives(values, feedback.quantise(name, values, group_size, factor)[0], moments)
    assert (better <= plain * (1 + 1e-5)).all()
    assert better.sum() < 0.6 * plain.sum()


def test_a_row_that_feedback_makes_worse_keeps_its_plain_encoding(factor: Factor) -> None:
    """Weights on the grid itself have no error, so that nothing can be better."""
    plain, _ = quantise("q4", weights(16, 384, seed=2), 32)
    values = formats.dequantise(plain)
    again, _ = quantise("q4", values, 32)
    packed, _ = feedback.quantise("q4", values, 32, factor)
    moments = exact_moments(factor)
    assert (objectives(values, packed, moments) <= objectives(values, again, moments) * (1 + 1e-5) + 1e-30).all()
    totals = feedback.bounded_objectives(np.zeros((16, 384), np.float32), factor, np.zeros(16))
    assert not totals.any()


def test_bounded_objectives_agree_with_the_sum_over_all_columns(factor: Factor) -> None:
    errors = np.random.default_rng(3).standard_normal((40, 384)).astype(np.float32)
    whole = feedback_reference.objective(errors, factor)
    bounds = whole * np.random.default_rng(4).uniform(0.2, 1.8, 40)
    found = feedback.bounded_objectives(errors, factor, bounds)
    assert np.array_equal(found > bounds, whole > bounds)
    kept = whole <= bounds
    assert np.array_equal(found[kept], whole[kept])


@pytest.mark.parametrize("name", ["q4", "lin4"])
def test_rows_are_independent(name: str, factor: Factor) -> None:
    values = encodable(name, weights(48, 384, seed=5))
    whole, errors = feedback.quantise(name, values, 32, factor)
    for start in (0, 16, 32):
        piece, piece_errors = feedback.quantise(name, values[start : start + 16], 32, factor)
        for part, array in piece.parts.items():
            assert np.array_equal(array, whole.parts[part][start // 16 : start // 16 + 1])
        assert np.array_equal(piece_errors, errors[start : start + 16])


def test_factor_does_not_depend_on_threads() -> None:
    moments = second_moments(correlated_inputs(1000, 800))
    first, second = (feedback_factor.factorise([moments], threads=threads) for threads in (1, 5))
    assert first is not None
    assert second is not None
    assert np.array_equal(np.triu(first.shares[0]), np.triu(second.shares[0]))
    assert np.array_equal(first.weights, second.weights)


def test_dead_inputs_get_no_error_of_others() -> None:
    inputs = correlated_inputs(600, 256)
    inputs[:, 10] = inputs[:, 200] = 0
    factor = feedback_factor.factorise([second_moments(inputs)])
    assert factor is not None
    assert not factor.shares[0][:200, 200].any()
    values = weights(32, 256, seed=6)[9:]
    packed, _ = feedback.quantise("q4", values, 32, factor)
    assert np.isfinite(formats.dequantise(packed)).all()


def test_one_huge_input_leaves_the_feedback_of_the_others() -> None:
    """Measure the outputs of ordinary inputs: an outlier in one column must not turn the feedback off."""
    inputs = correlated_inputs(2000, 256, seed=7)
    ordinary = second_moments(inputs).astype(np.float64)
    inputs[::50, 17] = 3000
    moments = second_moments(inputs)
    factor = feedback_factor.factorise([moments])
    assert factor is not None
    values = weights(64, 256, seed=8)[9:]
    plain = quantise("q4", values, 32)[0]
    packed = feedback.quantise("q4", values, 32, factor)[0]
    with_outlier = moments.astype(np.float64)
    assert objectives(values, packed, with_outlier).sum() < 0.1 * objectives(values, plain, with_outlier).sum()
    assert objectives(values, packed, ordinary).sum() < objectives(values, plain, ordinary).sum()
    assert factor.typical < 2 * ordinary.diagonal().mean()  # or the damping would end the feedback of the others


def test_one_monstrous_input_does_not_decide_everything() -> None:
    """Check that the errors of all other columns stay near those without it, though it has nearly all of the energy."""
    inputs = correlated_inputs(2000, 256, seed=7)
    ordinary = second_moments(inputs).astype(np.float64)
    factors = [feedback_factor.factorise([second_moments(inputs)])]
    inputs[::50, 17] = 1e5
    factors.append(feedback_factor.factorise([second_moments(inputs)]))
    values = weights(64, 256, seed=8)[9:]
    losses = []
    for factor in factors:
        assert factor is not None
        losses.append(objectives(values, feedback.quantise("q8", values, 32, factor)[0], ordinary).sum())
    assert losses[1] < 10 * losses[0]  # 37,000 times without a limit to the influence of an input


def test_damping_rises_until_the_moments_are_positive_definite() -> None:
    moments = second_moments(correlated_inputs(600, 160))
    moments[0, 1] = moments[1, 0] = 3 * max(moments[0, 0], moments[1, 1])
    factor = feedback_factor.factorise([moments])
    assert factor is not None
    assert factor.damping > 0.01
    both = feedback_factor.factorise([np.eye(128, dtype=np.float32), moments])
    assert both is not None
    assert len(both.weights) == 288
    moments[0, 1] *= 1e6
    assert feedback_factor.factorise([moments]) is None
    assert feedback_factor.factorise([np.zeros((64, 64), np.float32)]) is None


def test_targets_for_a_quantised_prefix_solve_the_normal_equations() -> None:
    inputs = correlated_inputs(1200, 288, seed=9)
    noisy = inputs + 0.2 * correlated_inputs(1200, 288, seed=10)
    moments, cross = second_moments(noisy), second_moments(inputs, noisy)
    factor = feedback_factor.factorise([moments], [cross])
    assert factor is not None
    values = np.random.default_rng(11).standard_normal((20, 288)).astype(np.float32)
    found = feedback_target.correct_targets(values, factor)
    assert np.array_equal(found, feedback_reference.correct_targets(values, factor))
    damping = factor.damping * factor.typical * np.eye(288)
    expected = values @ (cross + damping) @ np.linalg.inv(moments + damping)
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()


def test_factor_of_another_matrix_is_refused(factor: Factor) -> None:
    values = np.ones((16, 256), np.float32)
    with pytest.raises(FormatError, match="the statistics have 384 inputs and the matrix 256"):
        feedback.quantise("q4", values, 32, factor)
    uneven = feedback_factor.factorise([np.eye(192, dtype=np.float32), np.eye(64, dtype=np.float32)])
    assert uneven is not None
    with pytest.raises(FormatError, match="groups of 128 do not divide"):
        feedback.quantise("lin4", values, 128, uneven)
