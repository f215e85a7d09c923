"""Prompt look-up: tokens that followed an earlier occurrence of the newest tokens (Saxena 2023).

A text that quotes, edits or continues its context repeats long parts of it. So the tokens that followed the newest
tokens when they last occurred are a free guess at the tokens to come.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_MATCH_TOKENS = 8  # longer matches count as this long
_BITS = 21  # bits of a token id in a key: three ids fit a signed 64-bit integer
_PAIR = (1 << 2 * _BITS) - 1
_TRIPLE = (1 << 3 * _BITS) - 1


class PromptLookup:
    """Index of the pairs and triples of a growing text of token ids; a token costs O(1).

    A match that keeps guessing right is kept. Once it is MAX_MATCH_TOKENS long nothing replaces it; before that, an
    equally long or longer match of a more recent triple, or else pair, does.

    Args:
        token_ids: (tokens,) i64, at least one.

    Attributes:
        source: position of the token that followed the match, the guess at the next token.
        length: number of tokens before `source` that equal the newest tokens; 0 if there is no match.
    """

    def __init__(self, token_ids: NDArray[np.int64]) -> None:
        """Index `token_ids`."""
        ids = np.asarray(token_ids, np.int64)
        read = ids[:-1]
        pairs = read[:-1] << _BITS | read[1:]
        triples = read[:-2] << 2 * _BITS | pairs[1:]
        # Of equal keys the last one stays, which is the most recent occurrence.
        self._pairs = dict(zip(pairs.tolist(), range(2, len(ids)), strict=False))
        self._triples = dict(zip(triples.tolist(), range(3, len(ids)), strict=False))
        self._ids: list[int] = read.tolist()
        self._key = int(triples[-1]) if len(triples) else int(pairs[-1]) if len(pairs) else int(read.sum())
        self.source = self.length = 0
        self.append(int(ids[-1]))

    def append(self, token: int) -> None:
        """Append `token` to the text."""
        ids = self._ids
        kept = self.length + 1 if self.length and ids[self.source] == token else 0
        source = self.source + 1
        ids.append(token)
        end = len(ids)
        key = self._key = (self._key << _BITS | token) & _TRIPLE
        recent = None
        if end > 2:
            recent = self._triples.get(key)
            self._triples[key] = end
        if end > 1:
            pair = key & _PAIR
            if recent is None:
                recent = self._pairs.get(pair)
            self._pairs[pair] = end
        if recent is not None and kept < MAX_MATCH_TOKENS:
            common = self._match_length(recent)
            if common >= kept:
                source, kept = recent, common
        self.source, self.length = source, kept

    def _match_length(self, source: int) -> int:
        """Return how many tokens before `source` equal the newest tokens, at most MAX_MATCH_TOKENS."""
        ids = self._ids
        distance = len(ids) - source
        length = 0
        for position in range(source - 1, max(source - 1 - MAX_MATCH_TOKENS, -1), -1):
            if ids[position] != ids[position + distance]:
                break
            length += 1
        return length

    @property
    def guess(self) -> int:
        """The token that is likely to come next; -1 if there is no match."""
        return self._ids[self.source] if self.length else -1

    def draft(self, count: int) -> list[int]:
        """Return the `count` tokens that followed the match; at the end of the text they repeat from the match on."""
        found = self._ids[self.source : self.source + count]
        while len(found) < count:
            found += found[: count - len(found)]
        return found
