"""The sampler, compared with plain definitions; tests/oracle compares it with transformers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.wording import first_argument
from qwchat.errors import NonFiniteLogitsError, UsageError
from qwchat.generation.sampling import Sampler, uniform
from qwchat.request import SamplingParams

QWEN2_ROWS, QWEN2_TOKENS = 152_064, 151_646
STREAM_1234 = [0.3347236812982095, 0.5920534818812643, 0.08098741258028985]


def logits(size: int, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def plain(values: np.ndarray, settings: SamplingParams, prompt: list[int], reply: list[int]) -> np.ndarray:
    """Return the probability of every id by definition, token by token in float64."""
    scores = values.astype(np.float64)
    for token in set(prompt) | set(reply):
        scores[token] *= settings.repeat_penalty if scores[token] < 0 else 1 / settings.repeat_penalty
    for token in set(reply):
        scores[token] -= settings.presence_penalty + settings.frequency_penalty * reply.count(token)
    scores = scores / settings.temperature
    alive = np.ones(len(scores), bool)
    if settings.top_k:
        alive &= scores >= np.sort(scores)[::-1][min(settings.top_k, len(scores)) - 1]

    def probabilities() -> np.ndarray:
        weights = np.where(alive, np.exp(scores - scores.max()), 0.0)
        return weights / weights.sum()

    if settings.top_p < 1:
        current = probabilities()
        order = np.argsort(-current, kind="stable")
        before = np.cumsum(current[order]) - current[order]
        alive[order[before >= settings.top_p]] = False
    current = probabilities()
    alive &= current >= settings.min_p * current.max()
    return probabilities()


def full(sampler: Sampler, values: np.ndarray, prompt: list[int], reply: list[int]) -> np.ndarray:
    ids, probabilities = sampler.distribution(values, prompt, reply)
    assert (np.diff(ids) > 0).all()
    result = np.zeros(len(values))
    result[ids] = probabilities
    return result


@pytest.mark.parametrize(
    "settings",
    [
        SamplingParams(1.0),
        SamplingParams(0.7, top_k=20, top_p=0.8, repeat_penalty=1.05),
        SamplingParams(0.7, top_k=20, top_p=0.8, repeat_penalty=1.05, presence_penalty=1.5, frequency_penalty=0.3),
        SamplingParams(2.0, top_p=0.5),
        SamplingParams(0.3, min_p=0.1, repeat_penalty=0.8),
        SamplingParams(1.0, presence_penalty=-2.0, frequency_penalty=2.0),
        SamplingParams(5.0, top_k=1),
        SamplingParams(0.5, top_k=10_000, top_p=0.95, min_p=0.02),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 50, 4096])
def test_distributions_equal_the_definition(settings: SamplingParams, size: int) -> None:
    prompt = list(range(0, size, 3)) * 2
    reply = [token for token in range(0, size, 5) for _ in range(token % 4 + 1)]
    values = logits(size, seed=size)
    found = full(Sampler(settings, 0, size), values, prompt, reply)
    np.testing.assert_allclose(found, plain(values, settings, prompt, reply), atol=2e-6)


@given(
    st.lists(st.integers(-20, 20), min_size=1, max_size=30),
    st.floats(0.05, 5),
    st.integers(0, 12),
    st.floats(0.01, 1),
    st.floats(0, 1),
)
def test_any_settings_leave_a_distribution(
    steps: list[int], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    values = np.array(steps, np.float32) / 4  # many ties
    sampler = Sampler(SamplingParams(temperature, top_k, top_p, min_p), 0, len(values))
    ids, probabilities = sampler.distribution(values, [], [])
    assert probabilities.sum() == pytest.approx(1.0)
    assert (probabilities >= 0).all()
    assert values.max() in values[ids]
    # No token that was removed is likelier than one that was kept.
    assert np.delete(values, ids).max(initial=-np.inf) <= values[ids].min()


def test_penalties_count_occurrences_in_the_reply_only() -> None:
    values = np.zeros(6, np.float32)
    settings = SamplingParams(1.0, presence_penalty=0.5, frequency_penalty=0.25)
    found = np.log(full(Sampler(settings, 0, 6), values, [1, 1, 1], [2, 3, 3]))
    np.testing.assert_allclose(found - found[0], [0, 0, -0.75, -1.0, 0, 0], atol=1e-6)


def test_a_repeated_token_is_penalised_once_and_in_the_right_direction() -> None:
    values = np.array([2.0, -2.0, 2.0, -2.0], np.float32)
    found = np.log(full(Sampler(SamplingParams(1.0, repeat_penalty=2.0), 0, 4), values, [0, 0, 1], [0, 1, 1]))
    np.testing.assert_allclose(found - found[2], [-1.0, -6.0, 0.0, -4.0], atol=1e-6)


def test_the_penalty_also_steers_greedy_decoding() -> None:
    values = np.array([3.0, 2.9, 0.0], np.float32)
    assert Sampler(SamplingParams(), 0, 3).sample(values, [0], []) == 0
    assert Sampler(SamplingParams(repeat_penalty=1.1), 0, 3).sample(values, [0], []) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("penalty", "chosen"), [(1e300, 2), (1e-300, 0)])
def test_a_penalty_beyond_what_f32_holds_is_a_strong_one(penalty: float, chosen: int) -> None:
    values = np.array([3.0, -2.0, 40.0], np.float32)
    for temperature in (0.0, 1.0):
        sampler = Sampler(SamplingParams(temperature, repeat_penalty=penalty), 0, 3)
        assert sampler.sample(values, [0, 1], []) == chosen


def test_greedy_takes_the_lowest_id_of_a_tie() -> None:
    values = np.array([1.0, 7.0, 7.0, 7.0, 2.0], np.float32)
    for settings in (SamplingParams(), SamplingParams(1.0, top_p=1e-6), SamplingParams(0.5, top_k=3, top_p=0.1)):
        ids, probabilities = Sampler(settings, 0, 5).distribution(values, [], [])
        assert ids.tolist() == [1]
        assert probabilities.tolist() == [1.0]


def test_top_k_keeps_every_token_that_equals_the_last() -> None:
    values = np.array([5.0, 4.0, 4.0, 4.0, 1.0], np.float32)
    assert Sampler(SamplingParams(1.0, top_k=2), 0, 5).distribution(values, [], [])[0].tolist() == [0, 1, 2, 3]


def test_padding_rows_are_never_chosen() -> None:
    values = np.zeros(QWEN2_ROWS, np.float32)
    values[QWEN2_TOKENS:] = 100.0
    values[QWEN2_TOKENS - 1] = 1.0
    assert Sampler(SamplingParams(), 0, QWEN2_TOKENS).sample(values, [], []) == QWEN2_TOKENS - 1
    hot = Sampler(SamplingParams(5.0, repeat_penalty=1.3), 0, QWEN2_TOKENS)
    assert all(hot.sample(values, [QWEN2_ROWS - 1], [QWEN2_ROWS]) < QWEN2_TOKENS for _ in range(50))
    values[QWEN2_TOKENS:] = np.nan  # padding rows
    assert hot.sample(values, [], []) < QWEN2_TOKENS


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("settings", [SamplingParams(), SamplingParams(0.7, top_k=20)])
def test_non_finite_logits_raise(bad: float, settings: SamplingParams) -> None:
    values = logits(1000)
    values[500] = bad
    with pytest.raises(NonFiniteLogitsError, match="NaN or infinite logits"):
        Sampler(settings, 0, 1000).sample(values, [], [])


@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-38, 1e-30, 1e-5, 5.0])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e4, 1e38])
def test_extreme_scales_stay_finite(temperature: float, scale: float) -> None:
    values = np.linspace(-1, 1, 101).astype(np.float32) * np.float32(scale)
    for settings in (
        SamplingParams(temperature),
        SamplingParams(temperature, top_k=5, top_p=0.9, min_p=0.1),
        SamplingParams(temperature, top_p=0.5),
    ):
        _, probabilities = Sampler(settings, 0, 101).distribution(values, [], [])
        assert probabilities.sum() == pytest.approx(1.0)
        assert probabilities[0 if scale == 0.0 else -1] == probabilities.max()


def test_logits_are_left_unchanged() -> None:
    values = logits(500)
    before = values.copy()
    settings = SamplingParams(0.7, 20, 0.8, 0.1, 1.3, 0.5, 0.5)
    Sampler(settings, 0, 500).sample(values, [1, 2], [3, 4])
    np.testing.assert_array_equal(values, before)


def test_lists_and_arrays_of_ids_are_the_same() -> None:
    values, settings = logits(500), SamplingParams(0.7, repeat_penalty=1.3, frequency_penalty=0.5)
    listed = full(Sampler(settings, 0, 500), values, [1, 2, 2], [3, 3])
    arrayed = Sampler(settings, 0, 500).distribution(values, np.array([1, 2, 2], np.int32), np.array([3, 3]))
    np.testing.assert_array_equal(listed[arrayed[0]], arrayed[1])


def test_the_same_seed_gives_the_same_tokens() -> None:
    values = logits(4096)

    def draws(seed: int, count: int = 40, first: int = 0) -> list[int]:
        sampler = Sampler(SamplingParams(1.0, top_p=0.95), seed, 4096, first_draw=first)
        return [sampler.sample(values, [], []) for _ in range(count)]

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)
    assert draws(5, 15, first=25) == draws(5)[25:]


def test_a_draw_depends_on_seed_and_number_only() -> None:
    values = logits(4096)
    straight = Sampler(SamplingParams(1.0), 11, 4096)
    expected = [straight.sample(values, [], []) for _ in range(10)]
    detour = Sampler(SamplingParams(1.0), 11, 4096)
    for draw, token in enumerate(expected):
        if draw % 2:
            np.random.default_rng().random(draw)
            detour.distribution(values, [], [])
            assert detour.sample(values, [], []) == token
        else:
            # Any other distribution, even a certain one, uses exactly one draw.
            detour.sample(logits(4096, seed=draw, scale=1000.0), [], [])
    assert detour.draws_made == 10


def test_the_stream_of_a_seed_never_changes() -> None:
    assert [uniform(1234, draw) for draw in range(3)] == STREAM_1234
    assert uniform(0, 0) != uniform(1, 0) != uniform(0, 1)
    assert 0.0 <= uniform(2**64 - 1, 2**40) < 1.0


def chi_square_limit(degrees: int) -> float:
    """Return the value that chi-square exceeds once in 10,000 cases (Wilson and Hilferty 1931)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + 3.719 * math.sqrt(spread)) ** 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [SamplingParams(1.0), SamplingParams(0.7, top_k=20, top_p=0.8), SamplingParams(1.5, min_p=0.05)],
)
def test_draws_follow_the_distribution(settings: SamplingParams) -> None:
    values, draws = logits(60, scale=1.0), 20_000
    sampler = Sampler(settings, 2024, 60)
    ids, probabilities = sampler.distribution(values, [], [])
    counts = np.bincount([sampler.sample(values, [], []) for _ in range(draws)], minlength=60)[ids]
    assert counts.sum() == draws
    common = probabilities * draws >= 5
    expected = probabilities[common] * draws
    assert ((counts[common] - expected) ** 2 / expected).sum() < chi_square_limit(int(common.sum()) - 1)


def test_the_uniform_numbers_are_even_and_unrelated() -> None:
    numbers = np.array([uniform(seed, draw) for seed in range(50) for draw in range(400)])
    counts = np.histogram(numbers, 100, (0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < chi_square_limit(99)
    grid = numbers.reshape(50, 400)
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SamplingParams(temperature=-0.1), "temperature must be a number from 0 to 5, not -0.1"),
        (lambda: SamplingParams(temperature=5.1), "temperature must be a number from 0 to 5, not 5.1"),
        (lambda: SamplingParams(temperature=math.nan), "temperature must be"),
        (lambda: SamplingParams(top_p=0.0), "top_p must be a number above 0 to 1, not 0.0"),
        (lambda: SamplingParams(top_p=1.01), "top_p must be"),
        (lambda: SamplingParams(min_p=-0.1), "min_p must be a number from 0 to 1"),
        (lambda: SamplingParams(top_k=-1), "top_k must be a whole number of at least 0"),
        (lambda: SamplingParams(top_k=2.5), "top_k must be a whole number of at least 0"),  # type: ignore[arg-type]
        (lambda: SamplingParams(repeat_penalty=0.0), "repeat_penalty must be a number above 0, not 0.0"),
        (lambda: SamplingParams(repeat_penalty=math.inf), "repeat_penalty must be"),
        (lambda: SamplingParams(presence_penalty=2.5), "presence_penalty must be a number from -2 to 2"),
        (lambda: SamplingParams(frequency_penalty=-2.5), "frequency_penalty must be a number from -2 to 2"),
        (lambda: SamplingParams(temperature="hot"), "temperature must be"),  # type: ignore[arg-type]
        (lambda: SamplingParams().changed(top_p=3), "top_p must be"),
        (lambda: Sampler(SamplingParams(), -1, 10), "seed must be a whole number from 0 to 18446744073709551615"),
        (lambda: Sampler(SamplingParams(), 1 << 64, 10), "seed must be"),
    ],
)
def test_values_out_of_range_name_their_argument(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert message in str(caught.value)
    assert first_argument(caught.value) == message.partition(" ")[0]


def test_a_real_vocabulary() -> None:
    values = logits(QWEN2_ROWS)
    settings = SamplingParams(0.7, top_k=20, top_p=0.8, repeat_penalty=1.05)
    prompt, reply = list(range(3000)), list(range(100, 200))
    found = full(Sampler(settings, 3, QWEN2_TOKENS), values, prompt, reply)[:QWEN2_TOKENS]
    np.testing.assert_allclose(found, plain(values[:QWEN2_TOKENS], settings, prompt, reply), atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 20, 500, 592, 593, 100_000])
def test_top_k_of_a_real_vocabulary_is_that_of_a_sort(top_k: int) -> None:
    for step in (1e-6, 0.25, 2.0):  # no ties, some, many
        values = np.round(logits(QWEN2_TOKENS, seed=top_k) / step).astype(np.float32)
        ids, _ = Sampler(SamplingParams(5.0, top_k=top_k), 0, QWEN2_TOKENS).distribution(values, [], [])
        assert np.array_equal(ids, np.flatnonzero(values >= np.sort(values)[-top_k]))


@pytest.mark.parametrize("size", [1, 2, 511, 512, 513, 5000])
def test_a_draw_falls_where_the_cumulative_sum_says(size: int) -> None:
    values = logits(size, seed=size)
    sampler = Sampler(SamplingParams(1.0), 5, size)
    ids, probabilities = sampler.distribution(values, [], [])
    cumulative = np.cumsum(probabilities)
    expected = [int(ids[np.searchsorted(cumulative, uniform(5, draw), side="right")]) for draw in range(300)]
    assert [sampler.sample(values, [], []) for _ in range(300)] == expected


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_only_allowed_ids_are_drawn_as_if_there_were_no_others(temperature: float) -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(size=100).astype(np.float32)
    allowed = rng.random(100) < 0.3
    ids = np.flatnonzero(allowed)
    settings = SamplingParams(temperature=temperature, top_k=9, top_p=0.9, min_p=0.01, repeat_penalty=1.4)
    bits = np.packbits(np.append(allowed, np.ones(28, bool)), bitorder="little")  # padding is never chosen
    found, probabilities = Sampler(settings, 1, 100).distribution(logits, [int(ids[0])], [int(ids[1])], bits)
    alone, expected = Sampler(settings, 1, len(ids)).distribution(logits[ids], [0], [1])
    assert found.tolist() == ids[alone].tolist()
    assert probabilities.tolist() == expected.tolist()


def test_a_mask_that_allows_all_changes_nothing() -> None:
    logits = np.random.default_rng(6).normal(size=1000).astype(np.float32)
    settings = SamplingParams(temperature=0.7, top_p=0.8)
    sampler = Sampler(settings, 9, 1000)
    free = sampler.distribution(logits, [], [])
    bound = sampler.distribution(logits, [], [], np.full(125, 255, np.uint8))
    assert all(np.array_equal(a, b) for a, b in zip(free, bound, strict=True))
