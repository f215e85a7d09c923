"""Windows score each token once, from enough text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qwchat.evaluation.windows import Window, windows


def test_a_short_document_is_one_window() -> None:
    assert list(windows(10, 1, 16)) == [Window(0, 1, 10)]


def test_later_windows_score_their_second_half() -> None:
    assert list(windows(40, 1, 16)) == [
        Window(0, 1, 16),
        Window(8, 16, 24),
        Window(16, 24, 32),
        Window(24, 32, 40),
    ]


def test_a_reply_at_the_end_skips_windows_without_its_tokens() -> None:
    assert list(windows(40, 37, 16)) == [Window(24, 37, 40)]


@given(st.integers(0, 200), st.integers(1, 200), st.integers(16, 64))
def test_each_token_is_scored_once_from_at_least_half_a_window(tokens: int, first: int, size: int) -> None:
    scored: list[int] = []
    for window in windows(tokens, first, size):
        assert 0 <= window.start < window.first_scored < window.stop <= tokens
        assert window.stop - window.start <= size
        assert window.start == 0 or window.first_scored - window.start >= size // 2
        scored += range(window.first_scored, window.stop)
    assert scored == list(range(first, tokens))
