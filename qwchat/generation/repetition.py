"""Noticing that a reply goes round in circles: the same tokens again and again.

Small and quantised models fall into loops that they never leave, above all when greedy (Holtzman et al. 2020,
https://arxiv.org/abs/1904.09751, section 4).  Nothing proves that a repetition is not meant, so only one that is longer
than people ask for counts, and the end of such a reply can be undone: it can be continued.
"""

from __future__ import annotations

_LENGTH = 8  # tokens by which a place is known again
_BITS = 21  # of a token id within a key
_KEY = (1 << _LENGTH * _BITS) - 1
_TIMES = 4  # so often must all of it stand there


class RepetitionGuard:
    """Counts how long the text has repeated itself; a token costs O(1).

    `limit`: tokens that must equal, one after the other, those one period before them.  Whatever the period, the text
    of one stands there at least four times by then.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ids: list[int] = []
        self._last: dict[int, int] = {}  # the last place behind each sequence of _LENGTH tokens
        self._key = 0
        self._length = 0
        self.period = 0

    def append(self, token: int) -> bool:
        """The text grows by `token`; whether it has repeated itself for so long that it should end."""
        ids = self._ids
        end = len(ids)
        ids.append(token)
        self._key = (self._key << _BITS | token) & _KEY
        before = None
        if end >= _LENGTH - 1:
            before = self._last.get(self._key)
            self._last[self._key] = end
        # While a period holds it is kept: repetitions within it, such as indents, would only lead astray.
        if self.period and ids[end - self.period] == token:
            self._length += 1
        else:
            self.period, self._length = (0, 0) if before is None else (end - before, _LENGTH)
        return self.period > 0 and self._length >= max(self._limit, (_TIMES - 1) * self.period)
