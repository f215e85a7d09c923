"""Windows of long documents: what is evaluated together, and which of its tokens count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A piece of a document that is evaluated from position 0.

    Attributes:
        start: its first token.
        first_scored: the first token whose prediction counts.
        stop: one past its last token.
    """

    start: int
    first_scored: int
    stop: int


def windows(tokens: int, first_scored: int, size: int) -> Iterator[Window]:
    """Yield windows of at most `size` tokens that score each token from `first_scored` to `tokens - 1` once.

    Windows after the first one begin half a window later than the one before and score their second half, so that each
    token is predicted from at least half a window of text.
    """
    step = size // 2
    start = 0
    while first_scored < tokens:
        stop = min(start + size, tokens)
        if stop > first_scored:
            yield Window(start, max(first_scored, start + 1), stop)
            first_scored = stop
        start += step
