"""The policy of drafting, with simulated texts and clocks."""

from __future__ import annotations

import random

import pytest

from qwchat.generation.prompt_lookup import MAX_MATCH_TOKENS
from qwchat.generation.speculation import MAX_PASS_TOKENS, DraftPolicy


def simulate(
    policy: DraftPolicy, right: float, slope: float, passes: int, length: int = 4, single: float = 1.0
) -> float:
    """Return tokens per unit of time; a guess is right with probability `right`, and each draft token costs `slope`."""
    rng = random.Random(1)
    tokens, seconds = 0, 0.0
    for _ in range(passes):
        drafts = policy.draft_length(length)
        cost = single * (1 + slope * drafts) * rng.uniform(0.95, 1.05)
        policy.record_pass(1 + drafts, cost)
        seconds += cost
        for number in range(drafts + 1):
            hit = rng.random() < right
            policy.record_guess(length + number, hit)
            tokens += 1
            if not hit:
                break
    return tokens / seconds * single


def test_copying_is_drafted_to_the_end() -> None:
    policy = DraftPolicy()
    simulate(policy, 1.0, 0.1, 30)
    assert policy.draft_length(MAX_MATCH_TOKENS) == MAX_PASS_TOKENS - 1
    assert simulate(policy, 1.0, 0.1, 100) == pytest.approx(
        MAX_PASS_TOKENS / (1 + 0.1 * (MAX_PASS_TOKENS - 1)), rel=0.03
    )


@pytest.mark.parametrize(("right", "slope"), [(0.0, 0.1), (0.05, 0.1), (0.3, 0.6), (0.9, 1.0), (0.2, 0.3)])
def test_drafting_that_does_not_pay_is_skipped(right: float, slope: float) -> None:
    policy = DraftPolicy()
    assert simulate(policy, right, slope, 2000) > 0.97
    assert policy.draft_length(4) == 0


@pytest.mark.parametrize("right", [0.4, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("slope", [0.05, 0.1, 0.3])
def test_the_best_number_of_drafts_is_found(right: float, slope: float) -> None:
    best = max((1 - right ** (g + 1)) / (1 - right) / (1 + slope * g) for g in range(MAX_PASS_TOKENS))
    policy = DraftPolicy()
    simulate(policy, right, slope, 200)
    assert simulate(policy, right, slope, 3000) > 0.95 * best


def test_drafting_starts_again_when_it_pays_again() -> None:
    policy = DraftPolicy()
    simulate(policy, 0.0, 0.1, 500)
    assert policy.draft_length(4) == 0
    simulate(policy, 1.0, 0.1, 100)
    assert policy.draft_length(4) == MAX_PASS_TOKENS - 1


def test_a_disturbance_does_not_switch_drafting_off_for_good() -> None:
    policy = DraftPolicy()
    simulate(policy, 1.0, 0.1, 50)
    for _ in range(20):
        for rows in range(2, MAX_PASS_TOKENS + 1):
            policy.record_pass(rows, 100.0)
    simulate(policy, 1.0, 0.1, 40)
    assert policy.draft_length(MAX_MATCH_TOKENS) == 0
    simulate(policy, 1.0, 0.1, 2000)
    assert policy.draft_length(MAX_MATCH_TOKENS) == MAX_PASS_TOKENS - 1


def test_nothing_is_drafted_before_a_pass_was_timed() -> None:
    policy = DraftPolicy()
    for _ in range(100):
        policy.record_guess(MAX_MATCH_TOKENS, True)
    assert policy.draft_length(MAX_MATCH_TOKENS) == 0
