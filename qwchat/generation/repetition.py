"""Detect a reply that repeats the same tokens over and over.

Small and quantised models can get into loops that they never leave, especially with greedy decoding (Holtzman et al.
2020, https://arxiv.org/abs/1904.09751, section 4). A repetition may be intended, so only one that is longer than users
ask for counts, and the end of such a reply can be undone by continuing it.
"""

from __future__ import annotations

_LENGTH = 8  # tokens by which an earlier place is recognised
_BITS = 21  # bits of a token id in a key
_KEY = (1 << _LENGTH * _BITS) - 1
_TIMES = 4  # occurrences of the period


class RepetitionGuard:
    """Counts how long the text has been repeating itself; a token costs O(1).

    Args:
        limit: number of consecutive tokens that must equal the tokens one period earlier. Whatever the period, it must
            also have occurred at least four times.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ids: list[int] = []
        self._last: dict[int, int] = {}  # sequence of _LENGTH tokens -> its last position
        self._key = 0
        self._length = 0
        self.period = 0

    def append(self, token: int) -> bool:
        """Append `token`; return True if the text has repeated itself for so long that it should end."""
        ids = self._ids
        end = len(ids)
        ids.append(token)
        self._key = (self._key << _BITS | token) & _KEY
        before = None
        if end >= _LENGTH - 1:
            before = self._last.get(self._key)
            self._last[self._key] = end
        # A period is kept while it holds: repetitions within it, such as indents, would only mislead.
        if self.period and ids[end - self.period] == token:
            self._length += 1
        else:
            self.period, self._length = (0, 0) if before is None else (end - before, _LENGTH)
        return self.period > 0 and self._length >= max(self._limit, (_TIMES - 1) * self.period)
