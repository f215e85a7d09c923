"""The repetition guard finds every endless loop, and nothing else."""

from __future__ import annotations

from itertools import cycle, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwchat.generation.repetition import RepetitionGuard
from tests.tiers import count


def ended_at(tokens: list[int], limit: int) -> int | None:
    """Return the number of tokens after which the guard ends the text."""
    guard = RepetitionGuard(limit)
    return next((number for number, token in enumerate(tokens, 1) if guard.append(token)), None)


def repeated(tokens: list[int], period: int) -> int:
    """Count the tokens at the end that equal those one period earlier."""
    count = 0
    while count + period < len(tokens) and tokens[-1 - count] == tokens[-1 - count - period]:
        count += 1
    return count


@pytest.mark.parametrize("period", [1, 2, 3, 7, 8, 9, 40, 250, 700])
def test_a_plain_loop_ends_after_its_limit(period: int) -> None:
    loop = list(range(100, 100 + period))
    found = ended_at(list(islice(cycle(loop), 6000)), 1000)
    # It may take seven more tokens until the first sequence of eight occurs again.
    assert found == pytest.approx(max(1000, 3 * period) + period, abs=7)


@settings(max_examples=count(200, 40))
@given(
    st.lists(st.integers(0, 9), max_size=60),
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.integers(10, 80),
)
def test_every_loop_is_found_soon(before: list[int], loop: list[int], limit: int) -> None:
    text = before + list(islice(cycle(loop), 8 * (limit + 4 * len(loop) + 8)))
    found = ended_at(text, limit)
    assert found is not None
    assert found <= len(before) + max(limit, 3 * len(loop)) + 3 * len(loop) + 8


@settings(max_examples=count(300, 60))
@given(st.lists(st.integers(0, 2), max_size=120), st.integers(8, 20))
def test_only_long_repetitions_end_a_text(text: list[int], limit: int) -> None:
    found = ended_at(text, limit)
    if found is not None:
        generated = text[:found]
        assert any(repeated(generated, period) >= max(limit, 3 * period) for period in range(1, found))


@pytest.mark.parametrize(
    "text",
    [
        [number for row in range(40) for number in (1, 2, 3, 4, 5, row)],  # a table whose last column differs
        [7] * 999,
        list(range(400)) * 2,  # a text and its copy
        [token for line in range(60) for token in ([9] * (line % 8) + [line, 10])],  # indented lines
    ],
    ids=["table", "short", "copy", "indents"],
)
def test_intended_repetitions_are_let_through(text: list[int]) -> None:
    assert ended_at(text, 1000) is None
