"""The allocation of formats to matrices: within the budget, close to it, monotone, and close to the best one."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.allocation import Option, allocate, largest_size, smallest_size

Matrices = dict[str, list[Option]]
KINDS = ("a", "b", "c")


@st.composite
def matrices(draw: st.DrawFn) -> Matrices:
    """Return up to five matrices with up to three options each: larger ones lose less."""
    found = {}
    for number in range(draw(st.integers(1, 5))):
        count = draw(st.integers(1, 3))
        sizes = sorted(draw(st.lists(st.integers(1, 60), min_size=count, max_size=count, unique=True)))
        losses = sorted(draw(st.lists(st.integers(0, 100), min_size=count, max_size=count)), reverse=True)
        options = [Option(*each) for each in zip(KINDS, sizes, map(float, losses), strict=False)]
        found[f"m{number}"] = draw(st.permutations(options))
    return found


def totals(given_matrices: Matrices, chosen: dict[str, str]) -> tuple[int, float]:
    """Return the bytes and the loss of a choice."""
    picked = [
        next(option for option in options if option.format == chosen[name]) for name, options in given_matrices.items()
    ]
    return sum(option.nbytes for option in picked), sum(option.loss for option in picked)


def best_loss(given_matrices: Matrices, budget: int) -> float:
    """Return the least loss within the budget, from all choices."""
    choices = product(*given_matrices.values())
    return min(
        sum(option.loss for option in choice) for choice in choices if sum(option.nbytes for option in choice) <= budget
    )


@given(matrices(), st.integers(0, 300))
def test_the_budget_is_kept_and_used_up_to_one_step(given_matrices: Matrices, extra: int) -> None:
    least, most = smallest_size(given_matrices), largest_size(given_matrices)
    budget = min(least + extra, most)
    size, _ = totals(given_matrices, allocate(given_matrices, budget))
    assert size <= budget
    largest_step = max(
        max(option.nbytes for option in options) - min(option.nbytes for option in options)
        for options in given_matrices.values()
    )
    assert size == most or budget - size < largest_step
    assert totals(given_matrices, allocate(given_matrices, most))[0] == most


@given(matrices(), st.integers(0, 200), st.integers(0, 50))
def test_a_larger_budget_loses_no_more(given_matrices: Matrices, extra: int, more: int) -> None:
    budget = smallest_size(given_matrices) + extra
    _, loss = totals(given_matrices, allocate(given_matrices, budget))
    _, later = totals(given_matrices, allocate(given_matrices, budget + more))
    assert later <= loss + 1e-9


@given(matrices(), st.integers(0, 200))
def test_the_loss_is_within_one_step_of_the_least(given_matrices: Matrices, extra: int) -> None:
    budget = smallest_size(given_matrices) + extra
    _, loss = totals(given_matrices, allocate(given_matrices, budget))
    largest_gain = max(
        max(option.loss for option in options) - min(option.loss for option in options)
        for options in given_matrices.values()
    )
    least = best_loss(given_matrices, budget)
    assert least <= loss <= least + largest_gain + 1e-9


@given(matrices())
def test_without_limits_every_matrix_loses_the_least(given_matrices: Matrices) -> None:
    budget = largest_size(given_matrices)
    assert totals(given_matrices, allocate(given_matrices, budget))[1] == best_loss(given_matrices, budget)


def test_bytes_go_where_they_gain_most() -> None:
    given_matrices = {
        "small": [Option("q4", 10, 1.0), Option("q6", 15, 0.2), Option("q8", 20, 0.1)],
        "large": [Option("q4", 100, 5.0), Option("q6", 150, 1.0), Option("q8", 200, 0.5)],
    }
    assert allocate(given_matrices, 110) == {"small": "q4", "large": "q4"}
    assert allocate(given_matrices, 115) == {"small": "q6", "large": "q4"}
    assert allocate(given_matrices, 164) == {"small": "q8", "large": "q4"}  # The large step does not fit.
    assert allocate(given_matrices, 165) == {"small": "q6", "large": "q6"}
    assert allocate(given_matrices, 220) == {"small": "q8", "large": "q8"}


def test_an_option_between_two_better_ones_is_skipped() -> None:
    given_matrices = {"m": [Option("q4", 10, 1.0), Option("q6", 20, 0.9), Option("q8", 30, 0.0)]}
    assert allocate(given_matrices, 29) == {"m": "q4"}
    assert allocate(given_matrices, 30) == {"m": "q8"}


def test_noise_the_wrong_way_costs_nothing() -> None:
    given_matrices = {"m": [Option("q4", 10, 1.0), Option("q6", 20, 0.1), Option("q8", 30, 0.11)]}
    assert allocate(given_matrices, 30) == {"m": "q8"}


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_equal_gains_are_taken_in_the_order_of_the_matrices(order: tuple[str, str]) -> None:
    options = [Option("q4", 10, 1.0), Option("q8", 20, 0.0)]
    first, second = order
    assert allocate(dict.fromkeys(order, options), 30) == {first: "q8", second: "q4"}
