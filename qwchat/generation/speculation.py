"""The policy of speculative decoding: when drafting pays, and how many tokens to draft.

A pass over the newest token and g draft tokens takes t(g + 1) instead of t(1); that is little more, since weights are
read from memory once. It yields one token more than it accepts. Let a(n) be the probability that a guess is right whose
match is n tokens long; each right guess makes the match longer. The expected number of tokens is

    E(g, n) = 1 + a(n) + a(n) a(n + 1) + ... + a(n) ... a(n + g - 1)

(Leviathan et al. 2023, equation 1, with an acceptance that depends on the match). The policy takes the g with the
largest E / t, or none unless that beats E = 1 at t(1) by MARGIN.

Both are learnt while generating. a(n) needs no drafting: a guess is made for every token and compared with the token
that was drawn, so that a pessimistic estimate corrects itself at no cost. Times of passes are kept relative to the
running median of t(1). Old measurements are dropped, so that a disturbance cannot switch drafting off for good.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qwchat.generation.prompt_lookup import MAX_MATCH_TOKENS, PromptLookup

# Tokens of one pass with drafts. Up to here weights are read once, and attention is split over positions.
MAX_PASS_TOKENS = 8
MARGIN = 1.05
_INITIAL_SLOPE = 0.2  # share of t(1) that each token adds, until it was measured
# a(0) to a(MAX_MATCH_TOKENS), until guesses were counted
_INITIAL_ACCEPTANCE = (0.0, 0.0, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85)
_INITIAL_WEIGHT = 4.0  # number of guesses that these count as
_DECAY = 0.97  # per guess of one length: about the last 30 guesses count
_MIN_MEASUREMENTS = 3  # measurements of one number of tokens before they replace the estimate
_FORGET_AFTER = 64  # passes of one token between two calls of _drop_oldest


class DraftPolicy:
    """Statistics of guesses and pass times; one per engine, since they carry over from reply to reply."""

    def __init__(self) -> None:
        self._right = [share * _INITIAL_WEIGHT for share in _INITIAL_ACCEPTANCE]
        self._guessed = [_INITIAL_WEIGHT] * len(_INITIAL_ACCEPTANCE)
        self._single: deque[float] = deque(maxlen=9)
        self._singles = 0
        self._slopes: deque[float] = deque(maxlen=9)
        self._measured: list[deque[float]] = [deque(maxlen=7) for _ in range(MAX_PASS_TOKENS + 1)]
        self._ratios: list[float] = []
        self._min_acceptance = 1.0
        self._update_estimates()

    def record_guess(self, length: int, right: bool) -> None:
        """Record whether a guess from a match of `length` tokens was right."""
        length = min(length, MAX_MATCH_TOKENS)
        self._right[length] = self._right[length] * _DECAY + right
        self._guessed[length] = self._guessed[length] * _DECAY + 1

    def record_pass(self, rows: int, seconds: float) -> None:
        """Record that a pass of `rows` tokens took `seconds`."""
        if rows == 1:
            self._single.append(seconds)
            self._singles += 1
            if self._singles % _FORGET_AFTER == 0:
                self._drop_oldest()
        elif self._single:
            ratio = seconds / _median(self._single)
            self._measured[rows].append(ratio)
            self._slopes.append((ratio - 1) / (rows - 1))
            self._update_estimates()

    def draft_length(self, length: int) -> int:
        """Return how many tokens to draft after a match of `length` tokens: 0 to MAX_PASS_TOKENS - 1."""
        length = min(length, MAX_MATCH_TOKENS)
        right, guessed = self._right, self._guessed
        if right[length] <= self._min_acceptance * guessed[length] or not self._single:
            return 0
        expected = likely = 1.0
        most, best = MARGIN, 0
        for drafts, ratio in enumerate(self._ratios, 1):
            likely *= right[length] / guessed[length]
            expected += likely
            if expected > most * ratio:
                most, best = expected / ratio, drafts
            length = min(length + 1, MAX_MATCH_TOKENS)
        return best

    def _update_estimates(self) -> None:
        """Update t(g + 1) / t(1) for each g, and the a(n) below which no g can pay.

        Up to there E <= 1 + g a(n) does not exceed MARGIN times the ratio.
        """
        slope = _median((_INITIAL_SLOPE, *self._slopes))
        known = self._measured
        self._ratios = [
            _median(known[g + 1]) if len(known[g + 1]) >= _MIN_MEASUREMENTS else 1 + slope * g
            for g in range(1, MAX_PASS_TOKENS)
        ]
        self._min_acceptance = min((MARGIN * ratio - 1) / g for g, ratio in enumerate(self._ratios, 1))

    def _drop_oldest(self) -> None:
        """Drop the oldest measurement of each number of tokens."""
        for known in (*self._measured, self._slopes):
            if known:
                known.popleft()
        self._update_estimates()


class Drafter:
    """Drafts the tokens that are likely to follow, and records how often that is right.

    Args:
        ids: the prompt, (tokens,) i64, at least one token.
        policy: decides how many tokens to draft.
        stop_ids: tokens that end the reply; they are never drafted.
    """

    def __init__(self, ids: NDArray[np.int64], policy: DraftPolicy, stop_ids: frozenset[int]) -> None:
        self.policy = policy
        self._lookup = PromptLookup(ids)
        self._stop_ids = stop_ids

    def append(self, token: int) -> None:
        """Append `token` to the text, and record whether it was the guess."""
        lookup = self._lookup
        if lookup.length:
            self.policy.record_guess(lookup.length, lookup.guess == token)
        lookup.append(token)

    def draft(self, limit: int) -> list[int]:
        """Return the draft tokens that are likely to pay, at most `limit`, and none from the first stop token on."""
        if not self._lookup.length:
            return []
        count = min(self.policy.draft_length(self._lookup.length), limit)
        if count <= 0:
            return []
        draft = self._lookup.draft(count)
        for number, token in enumerate(draft):
            if token in self._stop_ids:
                return draft[:number]
        return draft


def _median(values: Sequence[float]) -> float:
    """Return the median; of an even number of values the upper one."""
    return sorted(values)[len(values) // 2]
