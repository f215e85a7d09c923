"""When drafting pays, and how far: the policy of speculative decoding.

A pass that reads the newest token and g drafted ones behind it costs t(g + 1) instead of t(1), for weights are read
from memory once, and yields one token more than it accepts.  With a(n) the probability that a guess is right whose
match is n tokens long, and each right guess making the match longer,

    E(g, n) = 1 + a(n) + a(n) a(n + 1) + ... + a(n) ... a(n + g - 1)

tokens are expected (Leviathan et al. 2023, equation 1, with an acceptance that depends on the match).  Of all g the one
with the largest E / t is taken, and none unless it beats E = 1 at t(1) by MARGIN.

Both are learnt on the way.  a(n) needs no drafting: a guess is made for every token and compared with what was drawn,
so an expectation that was too low corrects itself for nothing.  Times of passes are kept relative to the running median
of t(1); what has not been measured for a while is forgotten, so that a disturbance cannot switch drafting off for good.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qwchat.generation.prompt_lookup import MAX_MATCH_TOKENS, PromptLookup

# Tokens of one verifying pass: up to here the weights are read once and attention is shared out finely.
MAX_PASS_TOKENS = 8
MARGIN = 1.05
_INITIAL_SLOPE = 0.2  # by how much a row is expected to prolong a pass until that was measured, relative to t(1)
# a(0) to a(MAX_MATCH_TOKENS) until guesses were counted
_INITIAL_ACCEPTANCE = (0.0, 0.0, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85)
_INITIAL_WEIGHT = 4.0  # guesses that the above are worth
_DECAY = 0.97  # per guess of one length: about the last 30 count
_MIN_MEASUREMENTS = 3  # measurements of one number of rows before they count by themselves
_FORGET_AFTER = 64  # single passes


class DraftPolicy:
    """What is known about guesses and times; one per engine, since it holds from reply to reply."""

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
        """A guess from a match of `length` tokens was right or wrong."""
        length = min(length, MAX_MATCH_TOKENS)
        self._right[length] = self._right[length] * _DECAY + right
        self._guessed[length] = self._guessed[length] * _DECAY + 1

    def record_pass(self, rows: int, seconds: float) -> None:
        """A pass of `rows` tokens took so long."""
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
        """Tokens to draft behind a match of `length` tokens: 0 to MAX_PASS_TOKENS - 1."""
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
        """t(g + 1) / t(1) for g up to MAX_PASS_TOKENS - 1, and the a(n) up to which no g can pay: E <= 1 + g a(n)."""
        slope = _median((_INITIAL_SLOPE, *self._slopes))
        known = self._measured
        self._ratios = [
            _median(known[g + 1]) if len(known[g + 1]) >= _MIN_MEASUREMENTS else 1 + slope * g
            for g in range(1, MAX_PASS_TOKENS)
        ]
        self._min_acceptance = min((MARGIN * ratio - 1) / g for g, ratio in enumerate(self._ratios, 1))

    def _drop_oldest(self) -> None:
        for known in (*self._measured, self._slopes):
            if known:
                known.popleft()
        self._update_estimates()


class Drafter:
    """Guesses what follows the text so far, and counts how often that is right.

    `ids` (tokens,) i64: the prompt, at least one token.
    """

    def __init__(self, ids: NDArray[np.int64], policy: DraftPolicy, stop_ids: frozenset[int]) -> None:
        self.policy = policy
        self._lookup = PromptLookup(ids)
        self._stop_ids = stop_ids

    def append(self, token: int) -> None:
        """The text grows by `token`."""
        lookup = self._lookup
        if lookup.length:
            self.policy.record_guess(lookup.length, lookup.guess == token)
        lookup.append(token)

    def draft(self, limit: int) -> list[int]:
        """At most `limit` tokens that may follow, as many as are likely to pay; no stop token, which ends the text."""
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
    """The middle one, of an even number the upper."""
    return sorted(values)[len(values) // 2]
